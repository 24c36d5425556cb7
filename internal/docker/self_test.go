package docker

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/go-connections/nat"
)

func TestContainerID(t *testing.T) {
	const id = "0a46c1e4e9a71df0c1a2f0e7a35b6cb8ac5fbf0b4f0fd2b4cbe2a6a7f3a9d1c2"
	const store = "/var/lib/docker/containers/" + id
	for _, tt := range []struct {
		name, mountinfo, want string
	}{
		{"Docker", "571 568 8:1 /var/lib/docker/containers/" + id + "/hostname /etc/hostname rw,relatime - ext4 /dev/sda1 rw\n", id},
		{"a data directory of its own file system",
			"571 568 8:1 /containers/" + id + "/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n", id},
		{"rootless", "1 2 8:1 /home/u/.local/share/docker/containers/" + id + "/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n", id},
		{"among others", "1 2 0:1 / / rw - overlay overlay rw\n3 2 8:1 /x/" + id + "/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n", id},
		{"a machine", "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n", ""},
		{"a machine that holds containers", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" +
			"23 22 0:5 " + store + "/shm " + store + "/mounts/shm rw - tmpfs shm rw\n", ""},
		{"a volume that looks like it", "22 1 8:1 /x/" + id + "/hostname /data rw - ext4 /dev/sda1 rw\n", ""},
		{"nothing", "", ""},
		{"broken", "22 1\n\n", ""},
	} {
		if got := containerID(tt.mountinfo); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestGateways(t *testing.T) {
	bridge := network.Inspect{Driver: "bridge"}
	noAddress := network.Inspect{
		Driver:  "bridge",
		Options: map[string]string{"com.docker.network.bridge.inhibit_ipv4": "true"},
	}
	setGateway := network.Inspect{
		Driver: "bridge",
		IPAM: network.IPAM{Config: []network.IPAMConfig{
			{Gateway: "10.1.2.1", AuxAddress: map[string]string{"DefaultGatewayIPv4": "10.1.2.9"}},
		}},
	}
	for _, tt := range []struct {
		name      string
		published []string // the host's addresses of the port
		gateway   string
		gateway6  string
		network   network.Inspect
		want      []string
		wants     string // in the error
	}{
		{"as compose publishes it", []string{"127.0.0.1"}, "10.1.2.1", "", bridge, []string{"10.1.2.1"}, ""},
		{"IPv6 too", []string{"127.0.0.1", "::1"}, "10.1.2.1", "fd00::1", bridge, []string{"10.1.2.1", "fd00::1"}, ""},
		{"another loopback address", []string{"127.8.8.8"}, "10.1.2.1", "", bridge, []string{"10.1.2.1"}, ""},
		{"a link-local gateway is on every link", []string{"127.0.0.1"}, "10.1.2.1", "fe80::1", bridge, []string{"10.1.2.1"}, ""},
		{"no gateway", []string{"127.0.0.1"}, "", "", bridge, nil, ""},
		{"published nowhere", nil, "10.1.2.1", "", bridge, nil, "not published"},
		{"published everywhere", []string{"0.0.0.0"}, "10.1.2.1", "", bridge, nil, `"0.0.0.0"`},
		{"published everywhere by IPv6", []string{"::"}, "10.1.2.1", "", bridge, nil, `"::"`},
		{"published by default", []string{""}, "10.1.2.1", "", bridge, nil, `""`},
		{"published on a network", []string{"192.168.1.5"}, "10.1.2.1", "", bridge, nil, "192.168.1.5"},
		{"published on both", []string{"127.0.0.1", "192.168.1.5"}, "10.1.2.1", "", bridge, nil, "192.168.1.5"},
		{"published on a name", []string{"localhost"}, "10.1.2.1", "", bridge, nil, "localhost"},
		{"a network whose gateway is a router", []string{"127.0.0.1"}, "10.1.2.1", "", network.Inspect{Driver: "macvlan"}, nil, "macvlan"},
		{"a network that is not known", []string{"127.0.0.1"}, "10.1.2.1", "", network.Inspect{}, nil, "driver"},
		{"a bridge without an address", []string{"127.0.0.1"}, "10.1.2.1", "", noAddress, nil, "inhibit_ipv4"},
		{"a gateway that was set", []string{"127.0.0.1"}, "10.1.2.9", "", setGateway, nil, "DefaultGatewayIPv4"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			settings := &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{
				"net": {Gateway: tt.gateway, IPv6Gateway: tt.gateway6},
			}}
			settings.Ports = nat.PortMap{"9999/tcp": {{HostIP: "0.0.0.0"}}} // another port is nobody's business
			for i, ip := range tt.published {
				settings.Ports["8088/tcp"] = append(settings.Ports["8088/tcp"], nat.PortBinding{HostIP: ip, HostPort: fmt.Sprint(8088 + i)})
			}
			networks := map[string]network.Inspect{"net": tt.network}
			got, err := gateways(container.InspectResponse{NetworkSettings: settings}, networks, "8088")
			if (err != nil) != (tt.wants != "") || err != nil && !strings.Contains(err.Error(), tt.wants) {
				t.Fatalf("error %v, want one with %q", err, tt.wants)
			}
			var want []netip.Addr
			for _, text := range tt.want {
				want = append(want, netip.MustParseAddr(text))
			}
			if !slices.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		})
	}
	if _, err := gateways(container.InspectResponse{}, nil, "8088"); err == nil {
		t.Error("an engine that says nothing proves nothing")
	}
}
