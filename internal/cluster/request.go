package cluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"controld/internal/operation"
)

// The modes of a failover. Auto is decided once, from a fresh observation.
const (
	ModeAuto      = "auto"
	ModePlanned   = "planned"
	ModeEmergency = "emergency"
)

// The methods of a rejoin. Auto takes the first that holds.
const (
	MethodAuto       = "auto"
	MethodRewind     = "rewind"
	MethodBaseBackup = "basebackup"
)

// AcceptAnyLoss as MaxLossBytes accepts a loss that cannot be measured.
const AcceptAnyLoss = -1

// MaxReasonChars bounds the text that a caller may leave in the audit.
const MaxReasonChars = 500

// A FailoverRequest asks for another node to lead.
type FailoverRequest struct {
	Target          string // the node that shall lead; empty: the best standby
	Mode            string // ModeAuto when empty
	Reason          string // for the audit
	ExpectedPrimary string // refuse when another node leads; empty: any
	// MaxLossBytes is what the caller accepts to lose, instead of the
	// configured bound. AcceptAnyLoss accepts an unknown loss too.
	MaxLossBytes *int64
	// CancelRunning cancels what is in the way and may be cancelled, instead of
	// being refused for it.
	CancelRunning bool
}

// A FailbackRequest asks for the preferred primary to lead again.
type FailbackRequest struct {
	Reason        string // for the audit
	CancelRunning bool   // as a failover's
}

// A NodeRequest asks for one node to be started or rejoined.
type NodeRequest struct {
	Node          string
	Method        string // of a rejoin; empty: MethodAuto
	Reason        string // for the audit
	CancelRunning bool   // as a failover's
}

// A Plan is what an operation would do: its dry run.
type Plan struct {
	Kind     string // failover, failback
	Mode     string // as decided now
	From, To string // node names; empty when unknown
	Steps    []string
	Checks   []operation.Check
	WouldRun bool
	Refusal  *operation.Problem // why not, when it would not run
}

// An UnknownNode is the error of a request that names a node that is not there.
type UnknownNode struct {
	Field string // target, expected_primary, name
	Name  string
	Known []string
}

func (e *UnknownNode) Error() string {
	return fmt.Sprintf("%s: there is no node %q; the nodes are %s", e.Field, e.Name, strings.Join(e.Known, ", "))
}

// An InvalidField is the error of a request with a value that is not allowed.
type InvalidField struct {
	Field   string
	Value   any
	Allowed string
}

func (e *InvalidField) Error() string {
	return fmt.Sprintf("%s: %v is not allowed; allowed: %s", e.Field, e.Value, e.Allowed)
}

// Validate says what is wrong with the request in a cluster of these nodes.
func (r FailoverRequest) Validate(nodes []Node) error {
	if err := validateOneOf("mode", r.Mode, "", ModeAuto, ModePlanned, ModeEmergency); err != nil {
		return err
	}
	if r.Target != "" {
		if err := validateNode("target", r.Target, nodes); err != nil {
			return err
		}
	}
	if r.ExpectedPrimary != "" {
		if err := validateNode("expected_primary", r.ExpectedPrimary, nodes); err != nil {
			return err
		}
	}
	if r.MaxLossBytes != nil && *r.MaxLossBytes < AcceptAnyLoss {
		return &InvalidField{"max_loss_bytes", *r.MaxLossBytes, "0 or more bytes, or -1 to accept an unknown loss"}
	}
	return validateReason(r.Reason)
}

// Validate says what is wrong with the request.
func (r FailbackRequest) Validate() error { return validateReason(r.Reason) }

// ValidateNode says whether the cluster has a node called name.
func ValidateNode(name string, nodes []Node) error { return validateNode("name", name, nodes) }

// Validate says what is wrong with the request in a cluster of these nodes.
func (r NodeRequest) Validate(nodes []Node) error {
	return errors.Join(
		validateNode("name", r.Node, nodes),
		validateOneOf("method", r.Method, "", MethodAuto, MethodRewind, MethodBaseBackup),
		validateReason(r.Reason),
	)
}

// validateReason says whether the audit can keep the reason as it is.
func validateReason(reason string) error {
	if n := utf8.RuneCountInString(reason); n > MaxReasonChars {
		return &InvalidField{"reason", fmt.Sprintf("a text of %d characters", n), fmt.Sprintf("at most %d characters", MaxReasonChars)}
	}
	return nil
}

func validateNode(field, name string, nodes []Node) error {
	var known []string
	for _, n := range nodes {
		known = append(known, n.Name)
	}
	if slices.Contains(known, name) {
		return nil
	}
	return &UnknownNode{Field: field, Name: name, Known: known}
}

func validateOneOf(field, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	named := slices.DeleteFunc(slices.Clone(allowed), func(s string) bool { return s == "" })
	return &InvalidField{field, fmt.Sprintf("%q", value), strings.Join(named, ", ")}
}
