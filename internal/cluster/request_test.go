package cluster_test

import (
	"errors"
	"strings"
	"testing"

	"controld/internal/cluster"
)

func TestFailoverRequestValidate(t *testing.T) {
	nodes := []cluster.Node{{Name: "pg1"}, {Name: "pg2"}}
	loss := func(n int64) *int64 { return &n }
	for _, tt := range []struct {
		name  string
		r     cluster.FailoverRequest
		field string // empty: valid
		wants string
	}{
		{"empty", cluster.FailoverRequest{}, "", ""},
		{"everything", cluster.FailoverRequest{
			Target: "pg2", Mode: cluster.ModePlanned, Reason: "r", ExpectedPrimary: "pg1", MaxLossBytes: loss(0),
		}, "", ""},
		{"any loss", cluster.FailoverRequest{MaxLossBytes: loss(cluster.AcceptAnyLoss)}, "", ""},
		{"less than any", cluster.FailoverRequest{MaxLossBytes: loss(-2)}, "max_loss_bytes", "-1"},
		{"mode", cluster.FailoverRequest{Mode: "quick"}, "mode", "auto, planned, emergency"},
		{"target", cluster.FailoverRequest{Target: "pg9"}, "target", "pg1, pg2"},
		{"expected primary", cluster.FailoverRequest{ExpectedPrimary: "pg9"}, "expected_primary", "pg1, pg2"},
		{"reason", cluster.FailoverRequest{Reason: strings.Repeat("ä", cluster.MaxReasonChars+1)}, "reason", "500"},
		{"characters, not bytes", cluster.FailoverRequest{Reason: strings.Repeat("ä", cluster.MaxReasonChars)}, "", ""},
	} {
		err := tt.r.Validate(nodes)
		var invalid *cluster.InvalidField
		var unknown *cluster.UnknownNode
		field := ""
		switch {
		case errors.As(err, &invalid):
			field = invalid.Field
		case errors.As(err, &unknown):
			field = unknown.Field
		}
		if field != tt.field || (err == nil) != (tt.field == "") || err != nil && !strings.Contains(err.Error(), tt.wants) {
			t.Errorf("%s: %v, want field %q and %q", tt.name, err, tt.field, tt.wants)
		}
	}
	method := func(name string) error { return cluster.NodeRequest{Node: nodes[0].Name, Method: name}.Validate(nodes) }
	if method("magic") == nil || method(cluster.MethodRewind) != nil || method("") != nil {
		t.Error("the method of a rejoin")
	}
}
