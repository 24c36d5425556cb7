package cluster

import (
	"errors"
	"strings"
	"testing"
)

func TestFailoverRequestValidate(t *testing.T) {
	nodes := []Node{{Name: "pg1"}, {Name: "pg2"}}
	loss := func(n int64) *int64 { return &n }
	for _, tt := range []struct {
		name  string
		r     FailoverRequest
		field string // empty: valid
		wants string
	}{
		{"empty", FailoverRequest{}, "", ""},
		{"everything", FailoverRequest{Target: "pg2", Mode: ModePlanned, Reason: "r", ExpectedPrimary: "pg1", MaxLossBytes: loss(0)}, "", ""},
		{"any loss", FailoverRequest{MaxLossBytes: loss(AcceptAnyLoss)}, "", ""},
		{"less than any", FailoverRequest{MaxLossBytes: loss(-2)}, "max_loss_bytes", "-1"},
		{"mode", FailoverRequest{Mode: "quick"}, "mode", "auto, planned, emergency"},
		{"target", FailoverRequest{Target: "pg9"}, "target", "pg1, pg2"},
		{"expected primary", FailoverRequest{ExpectedPrimary: "pg9"}, "expected_primary", "pg1, pg2"},
		{"reason", FailoverRequest{Reason: strings.Repeat("ä", MaxReasonChars+1)}, "reason", "500"},
		{"characters, not bytes", FailoverRequest{Reason: strings.Repeat("ä", MaxReasonChars)}, "", ""},
	} {
		err := tt.r.Validate(nodes)
		var invalid *InvalidField
		var unknown *UnknownNode
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
	method := func(name string) error { return NodeRequest{Node: nodes[0].Name, Method: name}.Validate(nodes) }
	if method("magic") == nil || method(MethodRewind) != nil || method("") != nil {
		t.Error("the method of a rejoin")
	}
}
