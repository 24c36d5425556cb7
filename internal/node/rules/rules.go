// Package rules decides what a node's init does with an order: pure functions of the order,
// of what was done before, and of what lies in the data directory. The init of the
// containers and the one that tests make believe decide by the same ones.
package rules

import (
	"errors"
	"fmt"

	"controld/internal/node"
	"controld/internal/pgcontrol"
)

// A Refusal is the error of an order that is not carried out, and never will be.
type Refusal struct{ error }

// Unwrap gives what it was refused for.
func (r Refusal) Unwrap() error { return r.error }

// Refuse makes one.
func Refuse(format string, args ...any) error { return Refusal{fmt.Errorf(format, args...)} }

// TakeUp reports whether an order is a new one: taken is the epoch of the last one that
// this process has taken up, status what any process of the node has reported. One from
// before that is refused.
func TakeUp(o node.Order, taken uint64, status node.Status) (bool, error) {
	if o.Epoch <= taken {
		return false, nil
	}
	if o.Epoch < status.Epoch {
		return false, Refuse("order %d is older than order %d, which was taken up before", o.Epoch, status.Epoch)
	}
	return true, nil
}

// ActionWanted reports whether the order's action is one for a server at rest, and was not
// carried out before.
func ActionWanted(o node.Order, done node.Status) bool {
	switch o.Action {
	case node.ActionInitDB, node.ActionBaseBackup, node.ActionRewind, node.ActionDiscard:
		return done.ActionEpoch != o.Epoch
	}
	return false
}

// SalvageWanted reports whether the order asks for a salvage that was not tried yet.
func SalvageWanted(o node.Order, done node.Status) bool {
	return o.Action == node.ActionSalvage && (done.Salvaged == nil || done.Salvaged.Epoch != o.Epoch)
}

// ProvisionWanted reports whether the order asks for a provision that was not tried yet.
func ProvisionWanted(o node.Order, done node.Status) bool {
	return o.Action == node.ActionProvision && (done.Provisioned == nil || done.Provisioned.Epoch != o.Epoch)
}

// A Step is what an order comes to for a server that runs.
type Step string

// The steps. Adopt: take note, for the server is what the order asks for. Stop: it goes on
// when the server has ended. Salvage and Provision are work beside the server.
const (
	Adopt     Step = "adopt"
	Stop      Step = "stop"
	Salvage   Step = "salvage"
	Provision Step = "provision"
)

// Running is what an init knows that takes an order up while its server runs.
type Running struct {
	Done    node.Status
	Leads   bool            // the server is not in recovery: it may have been promoted since its start
	Control *pgcontrol.Data // nil: not readable
}

// Next says what the order comes to. The error is a Refusal, and leaves the server be.
func (r Running) Next(o node.Order) (Step, error) {
	wanted := ActionWanted(o, r.Done)
	switch {
	case o.Role == node.RoleNone:
		return Stop, nil
	case o.Role == node.RolePrimary && wanted:
		return "", Refuse("initdb was ordered while a server runs")
	case o.Role == node.RolePrimary && ProvisionWanted(o, r.Done):
		return Provision, nil
	case o.Role == node.RolePrimary:
		return Adopt, nil // no restart, ever: it leads, or the promotion comes by SQL
	case r.Leads && SalvageWanted(o, r.Done):
		// It leads already: WAL of another server has no place in it, and to
		// stop it would take the clients their primary.
		return "", Refuse("salvage was ordered for a server that leads")
	case wanted && r.Control != nil && MayDiscard(o, *r.Control) != nil: // before the server is stopped for it
		return "", Refuse("timeline %d cannot be discarded: the running server is on it", o.DiscardTimeline)
	case r.Leads || wanted:
		return Stop, nil
	case SalvageWanted(o, r.Done):
		return Salvage, nil
	}
	return Adopt, nil
}

// MayDiscard refuses to discard a timeline that the data directory is on. It says nothing
// to other actions.
func MayDiscard(o node.Order, control pgcontrol.Data) error {
	if at := control.Timeline(); o.Action == node.ActionDiscard && at >= o.DiscardTimeline {
		return Refuse("timeline %d cannot be discarded: the data directory is on timeline %d", o.DiscardTimeline, at)
	}
	return nil
}

// AtRest is what an init knows whose server does not run.
type AtRest struct {
	Done       node.Status
	Marker     node.Action // that had begun to overwrite the data and has not ended; empty: none
	Control    pgcontrol.Data
	ControlErr error // why there is none; pgcontrol.ErrNoCluster: there is no data directory
	Standby    bool  // the data would start in recovery
	// Empty is an error where the data directory holds anything.
	Empty func() error
}

// Allowed says why an order may not be carried out, before anything is touched.
func (r AtRest) Allowed(o node.Order) error {
	if used := r.Done.UsedEpoch; o.Role == node.RolePrimary && o.Epoch <= used {
		return Refuse("order %d to lead was used already (last used: %d): a primary needs a new order for each start", o.Epoch, used)
	}
	wanted := ActionWanted(o, r.Done)
	switch {
	case wanted && o.Action == node.ActionBaseBackup:
		return nil // from an empty directory, whatever was there
	case wanted && o.Action == node.ActionInitDB && r.Marker == node.ActionInitDB:
		return nil // its own beginning, cut off
	case r.Marker != "":
		return Refuse("an unfinished %s left the data directory unusable: order a basebackup", r.Marker)
	case wanted && o.Action == node.ActionInitDB:
		return r.Empty()
	case errors.Is(r.ControlErr, pgcontrol.ErrNoCluster):
		return Refuse("nothing to start: %w", r.ControlErr)
	case r.ControlErr != nil:
		return nil //nolint:nilerr // the server says what is wrong with it
	case o.Role == node.RolePrimary && r.Standby && r.Control.State.Recovering():
		// Started without its signal file it would end its recovery on the
		// timeline that it followed, and write there beside whoever leads on it.
		return Refuse("the data is a standby's (%s): a start does not make it lead, only a promotion does", r.Control.State)
	case wanted:
		return MayDiscard(o, r.Control)
	}
	return nil
}
