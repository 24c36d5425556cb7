//go:build long

package e2e

import "testing"

// TestLongKilled kills controld where TestKilledInPlannedFailover and
// TestKilledInOtherOperations do not.
func TestLongKilled(t *testing.T) {
	t.Run("planned", func(t *testing.T) {
		newKills(t).inPlanned([]cut{
			{"Session.CreateSlot", "after"},
			{"Pooler.Point", "after"},       // warm
			{"Session.Checkpoint", "after"}, // of the candidate or the primary
			{"Pooler.Drain", "after"},       // the pools are small
			{"Session.FillSegment", "after"},
			{"Pooler.RenewLease", "after"}, // claimed, not paused
			{"Pooler.Pause", "lost"},
			{"Volumes.WriteOrder.none", "before"},
			{"Volumes.WriteOrder.none", "lost"},
			{"Pooler.Point 2", "after"},  // repointed beside the stop
			{"Session.Promote", "after"}, // sent
			{"Pooler.Resume", "after"},   // released
			{"Pooler.Resume", "lost"},
			{"Volumes.WriteOrder.primary", "before"}, // the journal still says that the other leads
			{"Volumes.WriteOrder.standby", "before"},
		})
	})
	t.Run("others", func(t *testing.T) {
		k := newKills(t)
		k.inEmergency([]cut{
			{"Volumes.WriteOrder.none", "lost"},
			{"Pooler.PauseNow", "after"},
			{"Volumes.WriteOrder.standby", "after"}, // salvage
			{"Session.Promote", "before"},
			{"Session.Promote", "after"},
		})
		k.inRejoin("rewind", cut{"Volumes.WriteOrder.standby", "after"})
		k.inStart(cut{"Engine.Start", "after"})
		k.inStart(cut{"Engine.Start", "before"})
		k.inFailback(cut{"Pooler.Pause", "after"})
	})
}
