package testcluster

import (
	"net"
	"testing"
)

func TestOverlaps(t *testing.T) {
	has := func(cidr string) []net.Addr {
		ip, n, err := net.ParseCIDR(cidr)
		if err != nil {
			t.Fatal(err)
		}
		return []net.Addr{&net.IPNet{IP: ip, Mask: n.Mask}}
	}
	for _, c := range []struct {
		cidr string
		want bool
	}{
		{"10.201.7.1/24", true}, {"10.201.7.200/30", true}, {"10.0.0.5/8", true}, {"10.201.8.1/24", false}, {"127.0.0.1/8", false},
	} {
		if got := overlaps("10.201.7.0/24", has(c.cidr)); got != c.want {
			t.Errorf("%s: %v", c.cidr, got)
		}
	}
}
