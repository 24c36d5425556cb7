package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"controld/internal/cluster"
	"controld/internal/cluster/clustertest"
	"controld/internal/docker/dockertest"
	"controld/internal/postgres"
	"controld/internal/render"
)

// env makes the pair known under the nodes' own names.
func env(pair *dockertest.Pair) clustertest.SessionEnv {
	at := map[string]string{dockertest.Node1: pair.Primary.IP, dockertest.Node2: pair.Standby.IP}
	return clustertest.SessionEnv{
		Servers: &postgres.Servers{
			User: "controld", Password: dockertest.Password,
			Address: func(n cluster.Node) (string, int) { return at[n.Name], n.Port },
		},
		Primary: cluster.Node{Name: dockertest.Node1, Port: 5432},
		Standby: cluster.Node{Name: dockertest.Node2, Port: 5432},
	}
}

func TestSessions(t *testing.T) {
	pair := dockertest.StartPair(t)
	e := env(pair)
	for _, tt := range []struct {
		name string
		try  func(*testing.T, *dockertest.Pair, clustertest.SessionEnv)
	}{
		{"what an observation says", observeDetails},
		{"an open transaction is seen", openTransaction},
		{"a server without a connection left", full},
		{"queries are ended", endQueries},
		{"reload", reload},
		{"a slot without WAL is made anew", emptySlot},
		{"synchronous commit", synchronousCommit},
		{"a frozen server", frozen},
		{"a stopped primary", stoppedPrimary},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.try(t, pair, e) })
	}
	t.Run("contract", func(t *testing.T) { clustertest.RunSessionContract(t, e) })
}

func connect(t *testing.T, e clustertest.SessionEnv, n cluster.Node) cluster.Session {
	t.Helper()
	s, err := e.Servers.Connect(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func observe(t *testing.T, s cluster.Session) cluster.Server {
	t.Helper()
	v, err := s.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func observeDetails(t *testing.T, pair *dockertest.Pair, e clustertest.SessionEnv) {
	pair.Primary.SQL(t, "imdb", "BEGIN; SELECT pg_logical_emit_message(true, 'test', 'x'); PREPARE TRANSACTION 'two-phase'")
	defer pair.Primary.SQL(t, "imdb", "COMMIT PREPARED 'two-phase'")
	p := observe(t, connect(t, e, e.Primary))
	if p.PreparedCount != 1 {
		t.Errorf("%d prepared transactions, want 1", p.PreparedCount)
	}
	if p.SegmentBytes != 4<<20 || p.MaxSenders != 10 || p.MaxSlots != 10 {
		t.Errorf("segments of %d bytes, %d senders, %d slots", p.SegmentBytes, p.MaxSenders, p.MaxSlots)
	}
	if len(p.Slots) != 1 || p.Slots[0].Name != dockertest.Node2 || !p.Slots[0].Active || p.Slots[0].WALStatus != "reserved" {
		t.Errorf("slots: %+v", p.Slots)
	}
	if p.Settings["archive_command"] != "/bin/true" || p.BackupRunning || p.ReplayPaused {
		t.Errorf("primary: %+v", p)
	}
	s := observe(t, connect(t, e, e.Standby))
	want := pair.Standby.Role.PrimaryConninfo()
	if s.Settings["primary_conninfo"] != want || s.Settings["primary_slot_name"] != dockertest.Node2 {
		t.Errorf("standby's settings %q, want primary_conninfo %q", s.Settings, want)
	}
	if s.Receiver == nil || s.Receiver.Slot != dockertest.Node2 ||
		s.Receiver.Host != pair.Primary.Name || s.Receiver.LastMessageAt.IsZero() {
		t.Errorf("receiver: %+v", s.Receiver)
	}
}

func openTransaction(t *testing.T, pair *dockertest.Pair, e clustertest.SessionEnv) {
	s := connect(t, e, e.Primary)
	if v := observe(t, s); v.OldestTransaction() != nil {
		t.Errorf("a transaction is open: %+v", v.OldestTransaction())
	}
	client := shop(t, pair.Primary)
	if _, err := client.Exec(t.Context(), "BEGIN").ReadAll(); err != nil {
		t.Fatal(err)
	}
	got := observe(t, s).OldestTransaction()
	if got == nil || got.User != "app" || got.Database != "imdb" || got.Application != "shop" ||
		got.State != "idle in transaction" || got.Address == "" || got.PID == 0 || got.Age <= 0 {
		t.Errorf("transaction: %+v", got)
	}
}

// shop is an application's connection to a server.
func shop(t *testing.T, to *dockertest.Postgres) *pgconn.PgConn {
	t.Helper()
	dsn := fmt.Sprintf("host=%s user=app password='%s' dbname=imdb application_name=shop sslmode=disable", to.IP, dockertest.Password)
	client, err := pgconn.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(context.WithoutCancel(t.Context())) })
	return client
}

func full(t *testing.T, pair *dockertest.Pair, e clustertest.SessionEnv) {
	pair.Primary.SQL(t, "imdb", "ALTER ROLE controld CONNECTION LIMIT 0")
	defer pair.Primary.SQL(t, "imdb", "ALTER ROLE controld CONNECTION LIMIT -1")
	if _, err := e.Servers.Connect(t.Context(), e.Primary); !errors.Is(err, cluster.ErrFull) {
		t.Errorf("connect: %v, want %v", err, cluster.ErrFull)
	}
}

func endQueries(t *testing.T, pair *dockertest.Pair, e clustertest.SessionEnv) {
	ours, other := connect(t, e, e.Standby), connect(t, e, e.Standby)
	client := shop(t, pair.Standby)
	if err := ours.EndQueries(t.Context()); err != nil {
		t.Fatal(err)
	}
	dockertest.Eventually(t, 10*time.Second, func(ctx context.Context) error {
		if _, err := client.Exec(ctx, "SELECT 1").ReadAll(); err == nil {
			return errors.New("the application's session goes on")
		}
		return nil
	})
	for _, s := range []cluster.Session{ours, other} {
		if _, err := s.Position(t.Context()); err != nil {
			t.Errorf("a session of controld's: %v", err)
		}
	}
}

func reload(t *testing.T, pair *dockertest.Pair, e clustertest.SessionEnv) {
	s := connect(t, e, e.Standby)
	for _, command := range []string{"", "/bin/true"} {
		pair.Standby.SetRole(t, func(r *render.Role) { r.ArchiveCommand = command })
		if err := s.Reload(t.Context(), map[string]string{"archive_command": command, "restore_command": ""}); err != nil {
			t.Error(err)
		}
		if got := observe(t, s).Settings["archive_command"]; got != command {
			t.Errorf("archive_command is %q after the reload, want %q", got, command)
		}
	}
	primary := connect(t, e, e.Primary)
	pair.Primary.SQL(t, "postgres", "ALTER SYSTEM SET archive_command = '/bin/false'")
	pair.Primary.SetRole(t, func(r *render.Role) { r.ArchiveCommand = "" })
	err := primary.Reload(t.Context(), map[string]string{"archive_command": ""})
	if err == nil || !strings.Contains(err.Error(), "postgresql.auto.conf") {
		t.Errorf("a setting that ALTER SYSTEM overrides: %v; the error must name the file", err)
	}
	pair.Primary.SQL(t, "postgres", "ALTER SYSTEM RESET archive_command")
	if err := primary.Reload(t.Context(), map[string]string{"archive_command": ""}); err != nil {
		t.Error(err)
	}
	pair.Primary.WriteFile(t, "/order/"+render.RoleFile, "archive_command = 'no end")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err = primary.Reload(ctx, map[string]string{"archive_command": "no end"})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "log") {
		t.Errorf("a file that is wrong: %v", err)
	}
	primary = connect(t, e, e.Primary) // a deadline inside a query ends the session
	pair.Primary.SetRole(t, func(r *render.Role) { r.ArchiveCommand = "/bin/true" })
	if err := primary.Reload(t.Context(), map[string]string{"archive_command": "/bin/true"}); err != nil {
		t.Error(err)
	}
}

func emptySlot(t *testing.T, pair *dockertest.Pair, e clustertest.SessionEnv) {
	s := connect(t, e, e.Primary)
	pair.Primary.SQL(t, "postgres", "SELECT pg_create_physical_replication_slot('idle')")
	if err := s.CreateSlot(t.Context(), "idle"); err != nil {
		t.Fatal(err)
	}
	for _, slot := range observe(t, s).Slots {
		if slot.Name == "idle" && slot.Restart == 0 {
			t.Errorf("the slot keeps no WAL: %+v", slot)
		}
	}
	if err := s.DropSlot(t.Context(), "idle"); err != nil {
		t.Error(err)
	}
}

// synchronousCommit: nothing that controld does itself waits for a standby
// that is not there.
func synchronousCommit(t *testing.T, pair *dockertest.Pair, e clustertest.SessionEnv) {
	s := connect(t, e, e.Primary)
	set := func(names string) {
		pair.Primary.SetRole(t, func(r *render.Role) { r.SynchronousStandbyNames = names })
		if err := s.Reload(t.Context(), map[string]string{"synchronous_standby_names": names}); err != nil {
			t.Fatal(err)
		}
	}
	set(cluster.SynchronousNames([]string{"nobody"}))
	if err := s.WriteProbe(t.Context()); err != nil {
		t.Errorf("write probe: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	waiting := connect(t, e, e.Primary)
	if err := waiting.SyncProbe(ctx); err == nil {
		t.Errorf("the synchronous probe did not wait for a standby that is not there")
	}
	set(cluster.SynchronousNames([]string{dockertest.Node2}))
	if err := s.SyncProbe(t.Context()); err != nil {
		t.Errorf("synchronous probe with its standby: %v", err)
	}
	senders, err := s.Senders(t.Context())
	if err != nil || len(senders) != 1 || senders[0].SyncState != "sync" {
		t.Errorf("senders: %+v, %v", senders, err)
	}
	set("")
}

// frozen: a call to a server that does not answer ends with its context. A connection that
// only the kernel has accepted is none.
func frozen(t *testing.T, pair *dockertest.Pair, e clustertest.SessionEnv) {
	s := connect(t, e, e.Standby)
	pair.Standby.Pause(t)
	defer pair.Standby.Unpause(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := s.Position(ctx); err == nil {
		t.Errorf("a frozen server answered")
	}
	if _, err := e.Servers.Connect(ctx, e.Standby); err == nil || errors.Is(err, cluster.ErrStarting) {
		t.Errorf("connected to a frozen server: %v", err)
	}
	s.Close()
	if took := time.Since(began); took > time.Second {
		t.Errorf("gave up only after %v", took)
	}
}

func TestConnectErrors(t *testing.T) {
	network := dockertest.Network(t)
	p := dockertest.StartPrimary(t, network)
	address := func(n cluster.Node) (string, int) { return p.IP, n.Port }
	n := cluster.Node{Name: dockertest.Node1, Port: 5432}
	for _, tt := range []struct{ name, user, password, database string }{
		{"wrong password", "controld", "s3cret-wrong", ""},
		{"no such database", "controld", dockertest.Password, "nothing"},
		{"superuser over the network", "root", dockertest.Password, ""},
		{"replication role in a database", "replicator", dockertest.Password, ""},
		{"no such role", "mallory", "s3cret-wrong", ""},
	} {
		s := &postgres.Servers{User: tt.user, Password: tt.password, Database: tt.database, Address: address}
		_, err := s.Connect(t.Context(), n)
		if err == nil || strings.Contains(err.Error(), tt.password) || errors.Is(err, cluster.ErrStarting) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	// While it starts, and only then, the server says so.
	p.MustExec(t, "sh", "-c", "kill -INT 1")
	good := &postgres.Servers{User: "controld", Password: dockertest.Password, Address: address}
	dockertest.Eventually(t, 10*time.Second, func(ctx context.Context) error {
		_, err := good.Connect(ctx, n)
		if errors.Is(err, cluster.ErrStarting) {
			t.Errorf("a server that shuts down is said to start: %v", err)
		}
		if err == nil || !strings.Contains(err.Error(), "refused") && !strings.Contains(err.Error(), "no route") {
			return errors.New("the server has not ended")
		}
		return nil
	})
}

// TestStarting: between its start and the end of recovery a server is known to
// be starting, and is not taken for one that is not there.
func TestStarting(t *testing.T) {
	p := dockertest.StartPrimary(t, dockertest.Network(t))
	n := cluster.Node{Name: dockertest.Node1, Port: 5432}
	p.Kill(t)
	p.Start(t)
	good := &postgres.Servers{User: "controld", Password: dockertest.Password,
		Address: func(n cluster.Node) (string, int) { return p.IP, n.Port }}
	dockertest.Eventually(t, 20*time.Second, func(ctx context.Context) error {
		s, err := good.Connect(ctx, n)
		if err == nil {
			s.Close()
		} else if !errors.Is(err, cluster.ErrStarting) && !strings.Contains(err.Error(), "refused") {
			t.Errorf("a server that starts: %v", err)
		}
		return err
	})
}

// stoppedPrimary: a standby whose primary is stopped still knows its timeline and what it has
// received.
func stoppedPrimary(t *testing.T, pair *dockertest.Pair, e clustertest.SessionEnv) {
	s := connect(t, e, e.Standby)
	before, err := s.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pair.Primary.Stop(t)
	for range 50 {
		p, err := s.Position(t.Context())
		if err != nil || p.Timeline != before.Timeline || p.Received < before.Received || p.Replayed > p.Received {
			t.Fatalf("position %+v, %v; before the stop %+v", p, err, before)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if v := observe(t, s); !v.InRecovery || v.Timeline != before.Timeline {
		t.Errorf("observed %+v", v)
	}
	pair.Primary.Start(t)
	dockertest.Eventually(t, 20*time.Second, func(ctx context.Context) error {
		v, err := s.Observe(ctx)
		if err == nil && (v.Receiver == nil || v.Receiver.Status != "streaming") {
			err = errors.New("the standby does not stream again")
		}
		return err
	})
}

// TestSwitch is a planned failover by hand: at each moment the timelines are
// right, before the new primary's first checkpoint too.
func TestSwitch(t *testing.T) {
	pair := dockertest.StartPair(t)
	e := env(pair)
	candidate := connect(t, e, e.Standby)
	old := observe(t, connect(t, e, e.Primary))
	if err := candidate.CreateSlot(t.Context(), dockertest.Node1); err != nil {
		t.Fatal(err)
	}
	pair.Primary.Stop(t)
	if err := candidate.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	dockertest.Eventually(t, 10*time.Second, func(ctx context.Context) error {
		p, err := candidate.Position(ctx)
		switch {
		case err != nil:
			return err
		case p.InRecovery:
			return errors.New("still in recovery")
		case p.Timeline != old.Timeline+1:
			t.Errorf("the first position as a primary is on timeline %d, want %d", p.Timeline, old.Timeline+1)
		}
		return nil
	})
	t.Logf("promoted after %v", time.Since(began))
	if v := observe(t, candidate); v.Timeline != old.Timeline+1 || v.SystemID != old.SystemID {
		t.Errorf("observed right after the promotion: timeline %d, system %d", v.Timeline, v.SystemID)
	}

	pair.Primary.SetRole(t, func(r *render.Role) {
		r.Upstream = &render.Upstream{
			Host:        pair.Standby.Name,
			Port:        5432,
			PassFile:    "/run/secrets-own/pgpass",
			Application: dockertest.Node1,
		}
		r.PrimarySlotName = dockertest.Node1
	})
	pair.Primary.WriteFile(t, "/pg/node1/data/standby.signal", "")
	pair.Primary.Start(t)
	var s cluster.Session
	dockertest.Eventually(t, 20*time.Second, func(ctx context.Context) (err error) {
		if s == nil {
			if s, err = (&postgres.Servers{User: "controld", Password: dockertest.Password,
				Address: func(n cluster.Node) (string, int) { return pair.Primary.IP, n.Port }}).Connect(ctx, e.Primary); err != nil {
				s = nil
				return err
			}
		}
		v, err := s.Observe(ctx)
		if err == nil && (v.Receiver == nil || v.Receiver.Status != "streaming") {
			err = errors.New("the old primary does not stream yet")
		}
		if err == nil && v.Timeline != old.Timeline+1 {
			t.Errorf("it streams on timeline %d, want %d", v.Timeline, old.Timeline+1)
		}
		return err
	})
	s.Close()
}
