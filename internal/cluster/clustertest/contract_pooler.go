package clustertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"controld/internal/cluster"
)

// A PoolerEnv is what the contract of cluster.Pooler is tried on: a pooler in
// front of a primary and a standby.
type PoolerEnv struct {
	Pooler   cluster.Pooler
	Database string // one that clients use
	Primary  string // addresses
	Standby  string
	// Hold opens a transaction through the database, and returns what commits
	// it and tells how that went.
	Hold func(t *testing.T, database string) (commit func() error)
}

// RunPoolerContract tries what every implementation of cluster.Pooler must do.
func RunPoolerContract(t *testing.T, env PoolerEnv) {
	for _, tt := range []struct {
		name string
		try  func(*testing.T, PoolerEnv)
	}{
		{"point", poolerPoint},
		{"probe", poolerProbe},
		{"pause and resume", poolerPause},
		{"pause waits for a transaction and is given up", poolerPauseBlocked},
		{"the host changes under a pause", poolerRepoint},
		{"answers are counted", poolerCounts},
		{"drain", poolerDrain},
		{"kill", poolerKill},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env.restore(t)
			tt.try(t, env)
			env.restore(t)
		})
	}
}

func (env PoolerEnv) usual() cluster.Targets {
	return cluster.Targets{Primary: env.Primary, Standby: env.Standby}
}

// restore brings back the usual state, by the ways that lead there from any.
func (env PoolerEnv) restore(t *testing.T) {
	t.Helper()
	for _, db := range env.entries() {
		if err := env.Pooler.Pause(t.Context(), db); err != nil {
			t.Fatal(err)
		}
	}
	if err := env.Pooler.Point(t.Context(), env.usual()); err != nil {
		t.Fatal(err)
	}
	for _, db := range env.entries() {
		if err := env.Pooler.Resume(t.Context(), db); err != nil {
			t.Fatal(err)
		}
	}
}

func (env PoolerEnv) entries() []string {
	return []string{env.Database, env.Database + cluster.ReadOnlySuffix}
}

func (env PoolerEnv) entry(t *testing.T, name string) cluster.PoolerDatabase {
	t.Helper()
	state, err := env.Pooler.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range state.Databases {
		if d.Name == name {
			return d
		}
	}
	t.Fatalf("no entry %s: %+v", name, state.Databases)
	return cluster.PoolerDatabase{}
}

func poolerPoint(t *testing.T, env PoolerEnv) {
	for range 2 {
		if err := env.Pooler.Point(t.Context(), env.usual()); err != nil {
			t.Fatal(err)
		}
		for name, host := range map[string]string{
			env.Database: env.Primary, env.Database + cluster.ReadOnlySuffix: env.Standby, cluster.ProbeEntry: env.Primary,
		} {
			if got := env.entry(t, name); got.Host != host || got.Paused {
				t.Errorf("entry %s: %+v, want host %s, not paused", name, got, host)
			}
		}
	}
	alone := cluster.Targets{Primary: env.Primary, Probe: env.Standby}
	if err := env.Pooler.Point(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	if got := env.entry(t, env.Database+cluster.ReadOnlySuffix); got.Host != env.Primary {
		t.Errorf("without a standby the read-only entry leads to %s, not to the primary", got.Host)
	}
	if got := env.entry(t, cluster.ProbeEntry); got.Host != env.Standby {
		t.Errorf("the probes' entry leads to %s, not to %s", got.Host, env.Standby)
	}
}

// poolerCounts: a query counts once it is answered, at the entry that it came
// through.
func poolerCounts(t *testing.T, env PoolerEnv) {
	commit := env.Hold(t, env.Database)
	before := env.entry(t, env.Database).Answered
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, func(context.Context) error {
		if after := env.entry(t, env.Database).Answered; after <= before {
			return fmt.Errorf("%s after a commit, %s before", after, before)
		}
		return nil
	})
}

func poolerProbe(t *testing.T, env PoolerEnv) {
	for _, db := range []string{cluster.ProbeEntry, env.Database} {
		for range 2 {
			if err := env.Pooler.Probe(t.Context(), db); err != nil {
				t.Errorf("probe through %s: %v", db, err)
			}
		}
	}
	if err := env.Pooler.Probe(t.Context(), env.Database+cluster.ReadOnlySuffix); !errors.Is(err, cluster.ErrReadOnly) {
		t.Errorf("probe of the standby: %v, want %v", err, cluster.ErrReadOnly)
	}
	candidate := env.usual()
	candidate.Probe = env.Standby
	if err := env.Pooler.Point(t.Context(), candidate); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, func(ctx context.Context) error { // until the old server connection is closed
		if err := env.Pooler.Probe(ctx, cluster.ProbeEntry); !errors.Is(err, cluster.ErrReadOnly) {
			return fmt.Errorf("probe entry, led to the standby: %w, want %w", err, cluster.ErrReadOnly)
		}
		return nil
	})
	if err := env.Pooler.Probe(t.Context(), env.Database); err != nil {
		t.Errorf("the clients' database followed the probes' entry: %v", err)
	}
}

func poolerPause(t *testing.T, env PoolerEnv) {
	if err := env.Pooler.Resume(t.Context(), env.Database); err != nil {
		t.Errorf("resume of what is not paused: %v", err)
	}
	for range 2 {
		if err := env.Pooler.Pause(t.Context(), env.Database); err != nil {
			t.Fatalf("pause: %v", err)
		}
	}
	if err := env.Pooler.PauseNow(t.Context(), env.Database); err != nil {
		t.Errorf("pause now of what is paused: %v", err)
	}
	if !env.entry(t, env.Database).Paused {
		t.Errorf("not paused after a pause")
	}
	if load, err := env.Pooler.Load(t.Context(), env.Database); err != nil || load != (cluster.PoolLoad{}) {
		t.Errorf("server connections under a pause: %+v, %v", load, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := env.Pooler.Probe(ctx, env.Database); err == nil {
		t.Errorf("a write got through the pause")
	}
	if err := env.Pooler.Probe(t.Context(), cluster.ProbeEntry); err != nil {
		t.Errorf("the probes' entry is paused too: %v", err)
	}
	for range 2 {
		if err := env.Pooler.Resume(t.Context(), env.Database); err != nil {
			t.Fatalf("resume: %v", err)
		}
	}
	if env.entry(t, env.Database).Paused {
		t.Errorf("paused after a resume")
	}
	if err := env.Pooler.Probe(t.Context(), env.Database); err != nil {
		t.Errorf("after the resume: %v", err)
	}
}

func poolerPauseBlocked(t *testing.T, env PoolerEnv) {
	commit := env.Hold(t, env.Database)
	if load, err := env.Pooler.Load(t.Context(), env.Database); err != nil || load.Busy != 1 || load.Largest == 0 {
		t.Errorf("server connections with a transaction open: %+v, %v", load, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := env.Pooler.Pause(ctx, env.Database); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("pause with a transaction open: %v, want %v", err, context.DeadlineExceeded)
	}
	if err := env.Pooler.Resume(t.Context(), env.Database); err != nil {
		t.Errorf("resume after a pause that was given up: %v", err)
	}
	if env.entry(t, env.Database).Paused {
		t.Errorf("paused after the resume")
	}
	if err := commit(); err != nil {
		t.Errorf("the transaction that was waited for: %v", err)
	}
	if err := env.Pooler.Probe(t.Context(), env.Database); err != nil {
		t.Errorf("after the resume: %v", err)
	}
	if err := env.Pooler.Pause(t.Context(), env.Database); err != nil {
		t.Errorf("the next pause: %v", err)
	}
}

func poolerRepoint(t *testing.T, env PoolerEnv) {
	if err := env.Pooler.Probe(t.Context(), env.Database); err != nil {
		t.Fatal(err)
	}
	if err := env.Pooler.Pause(t.Context(), env.Database); err != nil {
		t.Fatal(err)
	}
	if err := env.Pooler.Point(t.Context(), cluster.Targets{Primary: env.Standby, Standby: env.Standby, Probe: env.Primary}); err != nil {
		t.Fatal(err)
	}
	if got := env.entry(t, env.Database); got.Host != env.Standby || !got.Paused {
		t.Errorf("entry %+v, want host %s, paused", got, env.Standby)
	}
	if err := env.Pooler.Resume(t.Context(), env.Database); err != nil {
		t.Fatal(err)
	}
	if err := env.Pooler.Probe(t.Context(), env.Database); !errors.Is(err, cluster.ErrReadOnly) {
		t.Errorf("write after the entry was led to the standby: %v, want %v", err, cluster.ErrReadOnly)
	}
}

func poolerDrain(t *testing.T, env PoolerEnv) {
	var commits []func() error
	for range 4 {
		commits = append(commits, env.Hold(t, env.Database))
	}
	for _, commit := range commits {
		if err := commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := env.Pooler.Drain(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, func(ctx context.Context) error {
		load, err := env.Pooler.Load(ctx, env.Database)
		if err == nil && load.Largest > 2 {
			err = fmt.Errorf("%+v", load)
		}
		return err
	})
	if got := env.entry(t, env.Database); got.Host != env.Primary || got.Paused {
		t.Errorf("after the drain the entry is %+v", got)
	}
	if err := env.Pooler.Probe(t.Context(), env.Database); err != nil {
		t.Errorf("while drained: %v", err)
	}
	if state, err := env.Pooler.Observe(t.Context()); err != nil || !slices.Contains(state.Resized, env.Database) {
		t.Errorf("while drained: resized %v (%v), want %s there", state.Resized, err, env.Database)
	}
	for range 2 {
		if err := env.Pooler.Drain(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if state, err := env.Pooler.Observe(t.Context()); err != nil || len(state.Resized) != 0 {
		t.Errorf("after the drain: resized %v (%v)", state.Resized, err)
	}
	var again []func() error
	for range 4 { // four at once need more than two connections
		again = append(again, env.Hold(t, env.Database))
	}
	for _, commit := range again {
		if err := commit(); err != nil {
			t.Error(err)
		}
	}
}

func poolerKill(t *testing.T, env PoolerEnv) {
	commit := env.Hold(t, env.Database)
	for range 2 {
		if err := env.Pooler.Kill(t.Context(), env.Database); err != nil {
			t.Fatal(err)
		}
	}
	if !env.entry(t, env.Database).Paused {
		t.Errorf("not paused after a kill")
	}
	if err := commit(); err == nil {
		t.Errorf("a transaction outlived the kill")
	}
	if err := env.Pooler.Resume(t.Context(), env.Database); err != nil {
		t.Fatal(err)
	}
	if err := env.Pooler.Probe(t.Context(), env.Database); err != nil {
		t.Errorf("after the resume: %v", err)
	}
}
