package failover

import (
	"controld/internal/cluster"
	"controld/internal/observer"
	"controld/internal/rejoin"
	"controld/internal/wal"
)

// A state is what the steps of a failover learn from each other.
type state struct {
	Mode string `json:"mode"`
	From string `json:"from"` // the old primary
	To   string `json:"to"`   // the candidate, chosen before anything changes

	Timeline     wal.Timeline    `json:"timeline"` // before the promotion
	SystemID     uint64          `json:"system_id"`
	SegmentBytes int64           `json:"segment_bytes"`
	Targets      cluster.Targets `json:"targets"`      // of the pooler, after
	Back         cluster.Targets `json:"back"`         // of the pooler, when undone
	RejoinFirst  bool            `json:"rejoin_first"` // failback: To does not stream yet
	Rejoin       rejoin.State    `json:"rejoin"`       // then: how far it is brought back
	MaxLoss      int64           `json:"max_loss"`
	Synced       bool            `json:"synced"` // From had a synchronous standby

	Checkpoint  wal.LSN       `json:"checkpoint"` // of the shutdown
	NewTimeline wal.Timeline  `json:"new_timeline"`
	PauseMS     float64       `json:"pause_ms"`
	Loss        observer.Loss `json:"loss"`
	Parted      bool          `json:"parted"` // emergency: To is on a later timeline than From already
	Salvaged    int64         `json:"salvaged_bytes"`
	Rejoined    bool          `json:"rejoined"`
	RejoinMS    int64         `json:"rejoin_ms"` // RESUME sent → the old primary streams
	Unprotected int64         `json:"unprotected_ms"`
	Proof       string        `json:"proof"` // emergency: what proved the death
	// NoWayBack says why the old primary of a planned failover could not be
	// started again; empty: that was not tried, or it could.
	NoWayBack string `json:"no_way_back"`

	Pause pauseState `json:"pause"`
}

// result is what the record of the operation tells in the end.
func (f *failover) result(s *state) map[string]any {
	out := map[string]any{"from": s.From, "to": s.To}
	if s.NewTimeline != 0 {
		out["timeline"] = s.NewTimeline
	}
	if s.PauseMS > 0 { // not known to a process that did not see it begin
		out["pause_ms"] = s.PauseMS
	}
	if s.NewTimeline != 0 {
		out["lost_bytes"] = s.Loss.Bytes
		out["estimate"] = s.Loss.Estimate
		out["rejoined"] = s.Rejoined
	}
	if s.Mode == cluster.ModeEmergency {
		out["salvaged_bytes"] = s.Salvaged
		out["proof_of_death"] = s.Proof
	}
	if s.NoWayBack != "" {
		out["old_primary_failed"] = s.NoWayBack
	}
	if s.RejoinMS > 0 {
		out["rejoin_ms"] = s.RejoinMS
	}
	if s.Synced {
		out["unprotected_ms"] = s.Unprotected
	}
	return out
}
