package clustertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"controld/internal/cluster"
	"controld/internal/wal"
)

// A SessionEnv is what the contract of cluster.Servers is tried on: two nodes,
// the second a standby that streams from the first.
type SessionEnv struct {
	Servers cluster.Servers
	Primary cluster.Node
	Standby cluster.Node
}

// RunSessionContract tries what every implementation of cluster.Session must
// do. It ends with the promotion of the standby: env is of no more use then.
func RunSessionContract(t *testing.T, env SessionEnv) {
	for _, tt := range []struct {
		name string
		try  func(*testing.T, SessionEnv)
	}{
		{"observe", sessionObserve},
		{"position", sessionPosition},
		{"probes", sessionProbes},
		{"slots", sessionSlots},
		{"checkpoint and reload", sessionCheckpointReload},
		{"fill segment", sessionFillSegment},
		{"a deadline is kept", sessionDeadline},
		{"knock", sessionKnock},
		{"promote", sessionPromote},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.try(t, env) })
	}
}

func (env SessionEnv) connect(t *testing.T, n cluster.Node) cluster.Session {
	t.Helper()
	s, err := env.Servers.Connect(t.Context(), n)
	if err != nil {
		t.Fatalf("connect to %s: %v", n.Name, err)
	}
	t.Cleanup(s.Close)
	return s
}

func (env SessionEnv) observe(t *testing.T, n cluster.Node) cluster.Server {
	t.Helper()
	v, err := env.connect(t, n).Observe(t.Context())
	if err != nil {
		t.Fatalf("observe %s: %v", n.Name, err)
	}
	return v
}

func sessionObserve(t *testing.T, env SessionEnv) {
	primary := env.observe(t, env.Primary)
	standby := env.observe(t, env.Standby)
	if primary.InRecovery || !standby.InRecovery {
		t.Errorf("in recovery: %s %v, %s %v", env.Primary.Name, primary.InRecovery, env.Standby.Name, standby.InRecovery)
	}
	if primary.SystemID == 0 || primary.SystemID != standby.SystemID {
		t.Errorf("system identifiers %d and %d, want one", primary.SystemID, standby.SystemID)
	}
	if primary.Timeline == 0 || primary.Timeline != standby.Timeline {
		t.Errorf("timelines %d and %d, want one", primary.Timeline, standby.Timeline)
	}
	if primary.Flushed == 0 || primary.Received != 0 || primary.Replayed != 0 {
		t.Errorf("primary's positions: flushed %v, received %v, replayed %v", primary.Flushed, primary.Received, primary.Replayed)
	}
	if standby.Flushed != 0 || standby.Replayed == 0 || standby.Received < standby.Replayed {
		t.Errorf("standby's positions: flushed %v, received %v, replayed %v", standby.Flushed, standby.Received, standby.Replayed)
	}
	if r := standby.Receiver; primary.Receiver != nil || r == nil || r.Status != "streaming" {
		t.Errorf("receivers: primary %+v, standby %+v", primary.Receiver, r)
	}
	streams := func(s cluster.Sender) bool { return s.Application == env.Standby.Name && s.State == "streaming" }
	if !slices.ContainsFunc(primary.Senders, streams) {
		t.Errorf("nobody streams as %s: %+v", env.Standby.Name, primary.Senders)
	}
	for _, name := range cluster.SettingNames {
		if _, ok := primary.Settings[name]; !ok {
			t.Errorf("setting %s was not read", name)
		}
	}
	if primary.MaxSenders == 0 || primary.MaxSlots == 0 || primary.SegmentBytes == 0 || primary.StartedAt.IsZero() {
		t.Errorf("limits are missing: %+v", primary)
	}
}

func sessionPosition(t *testing.T, env SessionEnv) {
	primary, standby := env.connect(t, env.Primary), env.connect(t, env.Standby)
	before, err := primary.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if before.InRecovery || before.Flushed == 0 || before.Timeline == 0 {
		t.Errorf("primary's position: %+v", before)
	}
	if err := primary.WriteProbe(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, err := primary.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.Flushed <= before.Flushed {
		t.Errorf("a committed write moved the position from %v to %v", before.Flushed, after.Flushed)
	}
	within(t, 10*time.Second, func(ctx context.Context) error {
		p, err := standby.Position(ctx)
		if err == nil && !(p.InRecovery && p.Received >= after.Flushed && p.Replayed >= after.Flushed && p.Timeline == after.Timeline) {
			err = fmt.Errorf("standby at %+v, primary at %v", p, after.Flushed)
		}
		return err
	})
}

func sessionProbes(t *testing.T, env SessionEnv) {
	primary, standby := env.connect(t, env.Primary), env.connect(t, env.Standby)
	for range 2 {
		if err := primary.WriteProbe(t.Context()); err != nil {
			t.Errorf("write probe on the primary: %v", err)
		}
		if err := primary.SyncProbe(t.Context()); err != nil {
			t.Errorf("synchronous write probe on the primary: %v", err)
		}
		if err := standby.WriteProbe(t.Context()); !errors.Is(err, cluster.ErrReadOnly) {
			t.Errorf("write probe on the standby: %v, want %v", err, cluster.ErrReadOnly)
		}
		if err := standby.SyncProbe(t.Context()); !errors.Is(err, cluster.ErrReadOnly) {
			t.Errorf("synchronous write probe on the standby: %v, want %v", err, cluster.ErrReadOnly)
		}
	}
	senders, err := primary.Senders(t.Context())
	if err != nil || len(senders) != 1 || senders[0].Application != env.Standby.Name {
		t.Errorf("senders of the primary: %+v, %v", senders, err)
	}
	senders, err = standby.Senders(t.Context())
	if err != nil || len(senders) != 0 {
		t.Errorf("senders of the standby: %+v, %v", senders, err)
	}
	databases, err := primary.Databases(t.Context())
	if err != nil || !slices.Contains(databases, "postgres") || !slices.Contains(databases, "template1") {
		t.Errorf("databases: %v, %v", databases, err)
	}
	if copies, err := primary.Copies(t.Context()); err != nil || len(copies) != 0 {
		t.Errorf("base backups of the primary, where nobody makes one: %+v, %v", copies, err)
	}
}

// sessionSlots: the reverse slot is made on a standby, before it leads.
func sessionSlots(t *testing.T, env SessionEnv) {
	const name = "contract"
	for _, n := range []cluster.Node{env.Primary, env.Standby} {
		s := env.connect(t, n)
		for range 2 {
			if err := s.CreateSlot(t.Context(), name); err != nil {
				t.Fatalf("create slot on %s: %v", n.Name, err)
			}
		}
		v, err := s.Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(v.Slots, func(slot cluster.Slot) bool { return slot.Name == name })
		if i < 0 || v.Slots[i].Active || v.Slots[i].Restart == 0 || v.Slots[i].Logical {
			t.Errorf("slots of %s: %+v, want %s there, idle, and keeping WAL", n.Name, v.Slots, name)
		}
		end := max(v.Flushed, v.Replayed)
		for _, to := range []wal.LSN{end, 1} { // it does not go back
			if err := s.AdvanceSlot(t.Context(), name, to); err != nil {
				t.Fatalf("advance slot on %s: %v", n.Name, err)
			}
			if v, err = s.Observe(t.Context()); err != nil {
				t.Fatal(err)
			}
			if i := slices.IndexFunc(v.Slots, func(x cluster.Slot) bool { return x.Name == name }); i < 0 || v.Slots[i].Restart < end {
				t.Errorf("slots of %s after an advance to %s: %+v, want %s to keep what comes after %s", n.Name, to, v.Slots, name, end)
			}
		}
		if err := s.AdvanceSlot(t.Context(), "missing", end); err != nil {
			t.Errorf("advance a slot that is not there: %v", err)
		}
		for range 2 {
			if err := s.DropSlot(t.Context(), name); err != nil {
				t.Fatalf("drop slot on %s: %v", n.Name, err)
			}
		}
	}
	// The standby holds its own slot on the primary: waiting for it ends with ctx.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := env.connect(t, env.Primary).DropSlot(ctx, env.Standby.Slot()); err == nil {
		t.Errorf("the slot of a streaming standby was dropped")
	}
}

func sessionCheckpointReload(t *testing.T, env SessionEnv) {
	for _, n := range []cluster.Node{env.Primary, env.Standby} {
		s := env.connect(t, n)
		if err := s.Checkpoint(t.Context()); err != nil {
			t.Errorf("checkpoint of %s: %v", n.Name, err)
		}
		v, err := s.Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Reload(t.Context(), map[string]string{"archive_command": v.Settings["archive_command"]}); err != nil {
			t.Errorf("reload of %s, nothing changed: %v", n.Name, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := s.Reload(ctx, map[string]string{"archive_command": "nobody wrote this"}); err == nil {
			t.Errorf("reload of %s reports a setting that its files do not have", n.Name)
		}
		cancel()
	}
}

func sessionFillSegment(t *testing.T, env SessionEnv) {
	s := env.connect(t, env.Primary)
	segment := env.observe(t, env.Primary).SegmentBytes
	const leave, slack = 300 << 10, 32 << 10 // pages, and what the server writes by itself
	for range 2 {
		if err := s.FillSegment(t.Context(), leave); err != nil {
			t.Fatal(err)
		}
		pos, err := s.Position(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if left := segment - int64(pos.Flushed)%segment; left > leave || left < leave-slack {
			t.Errorf("%d bytes of the segment are left, want %d", left, leave)
		}
	}
	if err := env.connect(t, env.Standby).FillSegment(t.Context(), leave); err == nil {
		t.Error("a standby filled a segment")
	}
}

func sessionDeadline(t *testing.T, env SessionEnv) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := env.Servers.Connect(ctx, env.Primary); err == nil {
		s.Close()
		t.Errorf("connected after the end of the context")
	}
	if _, err := env.connect(t, env.Primary).Observe(ctx); err == nil {
		t.Errorf("observed after the end of the context")
	}
}

// sessionKnock: a server that runs answers, whatever its role.
func sessionKnock(t *testing.T, env SessionEnv) {
	for _, n := range []cluster.Node{env.Primary, env.Standby} {
		if err := env.Servers.Knock(t.Context(), n); err != nil {
			t.Errorf("knock at %s: %v", n.Name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := env.Servers.Knock(ctx, env.Primary); err == nil {
		t.Error("knocked after the end of the context")
	}
}

func sessionPromote(t *testing.T, env SessionEnv) {
	s := env.connect(t, env.Standby)
	before, err := s.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	within(t, 30*time.Second, func(ctx context.Context) error {
		p, err := s.Position(ctx)
		if err == nil && p.InRecovery {
			err = errors.New("still in recovery")
		}
		return err
	})
	after, err := s.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.Timeline != before.Timeline+1 || after.Flushed == 0 {
		t.Errorf("after the promotion: %+v, before: %+v", after, before)
	}
	v, err := s.Observe(t.Context())
	if err != nil || v.InRecovery || v.Timeline != after.Timeline {
		t.Errorf("observed after the promotion: %+v, %v", v, err)
	}
	if err := s.Promote(t.Context()); err != nil {
		t.Errorf("promoted again: %v", err)
	}
	if err := s.WriteProbe(t.Context()); err != nil {
		t.Errorf("write probe after the promotion: %v", err)
	}
}

// within tries check until it succeeds or the time is over.
func within(t *testing.T, limit time.Duration, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not within %v: %v", limit, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
