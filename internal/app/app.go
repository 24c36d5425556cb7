// Package app wires the daemon: it is the one package that knows all others.
// It opens what the parts need, starts them, and takes everything down in
// reverse. What the parts do is theirs.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"controld/internal/api"
	"controld/internal/backup"
	"controld/internal/cluster"
	"controld/internal/config"
	"controld/internal/docker"
	"controld/internal/health"
	"controld/internal/job"
	"controld/internal/manager"
	"controld/internal/metrics"
	"controld/internal/monitor"
	"controld/internal/node/archive"
	"controld/internal/operation"
	"controld/internal/pgbackrest"
	"controld/internal/pgbouncer"
	"controld/internal/postgres"
	"controld/internal/redis"
	"controld/internal/render"
	"controld/internal/schedule"
	"controld/internal/volume"
)

// Options is what the daemon is started with.
type Options struct {
	Config  config.Config
	Version string
	Log     *slog.Logger
	// Listening, if set, is called with the address of the API once it answers.
	Listening func(net.Addr)
}

// Bounds of the way down. Together they stay below the 30 s that the container
// is given to stop: an operation inside a pause finishes or is undone first.
const (
	drainTimeout  = 15 * time.Second
	serverTimeout = 20 * time.Second // requests wait for the operations that drain
)

// app is a daemon that is being put together, and what to take down again.
type app struct {
	opts     Options
	log      *slog.Logger
	teardown []teardown
}

type teardown struct {
	name string
	f    func() error
}

func (a *app) onStop(name string, f func() error) {
	a.teardown = append(a.teardown, teardown{name, f})
}

// stop takes down what was put up, the last first, and goes on after an error.
func (a *app) stop() error {
	var errs []error
	for i := len(a.teardown) - 1; i >= 0; i-- {
		if err := a.teardown[i].f(); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", a.teardown[i].name, err))
		}
	}
	return errors.Join(errs...)
}

// Run is the daemon: it returns when ctx ends and everything is down, or when
// it cannot go on.
func Run(ctx context.Context, opts Options) error {
	a := &app{opts: opts, log: opts.Log}
	err := a.run(ctx)
	return errors.Join(err, a.stop())
}

// run is one straight line on purpose: each part needs the ones before it.
func (a *app) run(ctx context.Context) error {
	cfg := a.opts.Config
	secrets, err := config.ReadSecrets(cfg.SecretsDir)
	if err != nil {
		return err
	}
	set := settings(cfg)
	set.Secret = func(name string) string { return secrets[name].Reveal() }
	times, err := timetable(cfg.Backup)
	if err != nil {
		return err
	}

	release, err := volume.Claim(set.Nodes[0])
	if err != nil {
		return err
	}
	a.onStop("claim", release)
	journal, err := operation.OpenJournal(cfg.StateDir)
	if err != nil {
		return err
	}
	a.onStop("journal", journal.Close)

	engine, err := docker.New(docker.Config{Host: cfg.Engine.Host, Network: cfg.Network, Log: a.log})
	if err != nil {
		return err
	}
	a.onStop("engine", engine.Close)
	volumes := &volume.Volumes{Sizes: sizes(cfg)}
	pooler, err := pgbouncer.New(pgbouncer.Config{
		Address: cfg.Pooler.Address, ConfigDir: cfg.Pooler.ConfigDir, User: "controld", Password: secrets["role_controld"].Reveal(),
		Databases: cfg.Pooler.Databases, ServerPort: set.Nodes[0].Port, PoolSize: cfg.Pooler.PoolSize,
	})
	if err != nil {
		return err
	}
	a.onStop("pooler", func() error { pooler.Close(); return nil })
	changed, err := a.ensureConfig(set.Nodes, volumes, pooler)
	if err != nil {
		return err
	}
	cache := redis.New(redis.Config{Address: cfg.Redis.Address, Password: secrets["redis_password"].Reveal(), Interval: set.Interval})
	a.onStop("redis", cache.Close)

	operations, err := operation.NewManager(journal, operation.Claims, a.log)
	if err != nil {
		return err
	}
	out := outside(cluster.Outside{
		Engine:  engine,
		Volumes: volumes,
		Servers: &postgres.Servers{User: "controld", Password: secrets["role_controld"].Reveal()},
		Pooler:  pooler,
	})
	archiving, err := backup.NewArchiving(archive.PushCommand(cfg.Backup.Stanza), journal, func(n cluster.Node) bool {
		status, err := volumes.Status(n)
		return err != nil || status.Archives
	})
	if err != nil {
		return err
	}
	set.ArchiveCommand, set.ArchiveStanza = archiving.Command, cfg.Backup.Stanza
	looksAfter, err := manager.New(set, out, operations, journal, a.log)
	if err != nil {
		return err
	}
	a.onStop("looks at the servers", func() error { looksAfter.Close(); return nil })
	wake := wakeups(ctx, engine, containers(set, cfg))
	watcher := monitor.New(monitor.Config{
		Interval: set.Interval, Replication: set.Replication, SyncTimeout: set.SyncTimeout, Events: wake,
	}, looksAfter, operations, a.log)
	reloaded := make(chan struct{})
	go func() { // beside the rest: a frozen server would hold up the start
		defer close(reloaded)
		looksAfter.ReloadServers(ctx, changed)
	}()
	a.onStop("reload of the servers", func() error { <-reloaded; return nil })
	tool := pgbackrest.New(pgbackrest.Config{
		Socket: filepath.Join(cfg.Backup.ControlDir, job.SocketFile), Stanza: cfg.Backup.Stanza, Servers: set.Nodes,
		Idle: cfg.Backup.Priority == "idle",
	})
	a.onStop("pgbackrest", func() error { tool.Close(); return nil })
	files := repository(cfg, set.Nodes)
	all, err := parts{
		out: out, manager: looksAfter, operations: operations, redis: cache,
		backup: backup.Config{
			Stanza: cfg.Backup.Stanza, StuckAfter: cfg.Backup.StuckAfter, LookEvery: time.Minute, Timetable: times,
			RetainFulls: cfg.Backup.RetainFulls,
			CountManual: times.Next == nil, // who plans backups otherwise has no cycle
		},
		backups: backup.Parts{
			Cluster: looksAfter, Servers: out.Servers, Tool: tool, Files: files, Logs: files, Catalogue: cache, Archiving: archiving,
			Operations: operations, Facts: journal, Clock: clock(), Log: a.log,
		},
	}.capabilities()
	if err != nil {
		return err
	}
	shown := shown{
		Manager: looksAfter, redis: cache, capabilities: all,
		board: health.Board{Cluster: looksAfter, Contributors: all.health},
	}
	return a.serve(ctx, engine, &shown, operations, watcher, secrets)
}

// ensureConfig writes what the servers and the pooler read before their first
// start, and returns the nodes for which that is another file than before.
func (a *app) ensureConfig(nodes []cluster.Node, volumes *volume.Volumes, pooler *pgbouncer.Pooler) (changed []cluster.Node, err error) {
	for _, n := range nodes {
		written, err := volumes.EnsureConfig(n)
		if err != nil {
			return nil, err
		}
		if written {
			changed = append(changed, n)
		}
	}
	return changed, pooler.EnsureConfig()
}

// serve answers the API at once, resumes what an earlier process left open, and
// looks after the cluster until ctx ends.
func (a *app) serve(
	ctx context.Context,
	engine *docker.Engine,
	shown *shown,
	operations *operation.Manager,
	watcher *monitor.Monitor,
	secrets map[string]config.Secret,
) error {
	tokens, err := api.NewTokens(map[api.Role]string{
		api.Viewer:   secrets["token_viewer"].Reveal(),
		api.Operator: secrets["token_operator"].Reveal(),
		api.Admin:    secrets["token_admin"].Reveal(),
	})
	if err != nil {
		return err
	}
	figures := metrics.New(shown, operations, shown.capabilities.figures, a.opts.Version, runtime.Version(), a.log)
	server, err := api.New(api.Options{
		Cluster: shown, Operations: operations, Tokens: tokens, Nodes: shown.Nodes(), Interval: shown.Interval(),
		Anonymous: anonymous(a.opts.Config), Gateways: gateways(engine, a.opts.Config),
		Capabilities: shown.capabilities.commands,
		Metrics:      figures.Handler(), Version: a.opts.Version, Log: a.log,
	})
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", a.opts.Config.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if a.opts.Listening != nil {
		a.opts.Listening(listener.Addr())
	}
	a.log.Info("API answers", "address", listener.Addr().String())

	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Serve(running, listener, serverTimeout) })
	group.Go(func() error { server.LearnGateways(running); return nil })
	shown.capabilities.watch(running, group)
	group.Go(func() error { return figures.Run(running, operations) })
	group.Go(func() error {
		if err := operations.Resume(running); err != nil && running.Err() == nil {
			a.log.Error("not every operation was resumed", "err", err)
		}
		return nil
	})
	group.Go(func() error {
		operations.Maintain(running, operation.Retention{Count: a.opts.Config.Audit.Keep, For: a.opts.Config.Audit.KeepFor})
		return nil
	})
	// The watcher runs beside what is resumed: a base backup takes hours, and controld
	// looks meanwhile. It starts nothing while an operation holds the cluster.
	group.Go(func() error { return watcher.Run(running) })
	group.Go(func() error {
		<-running.Done()
		a.log.Info("stopping")
		work, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		return operations.Stop(work)
	})
	return group.Wait()
}

// shown is what the API and the metrics show: the cluster, and what each part adds.
type shown struct {
	*manager.Manager
	redis        *redis.Client
	board        health.Board
	capabilities capabilities
}

// Health is that of all parts together.
func (s *shown) Health() health.Report { return s.board.Health() }

// Redis is what was last seen of it.
func (s *shown) Redis() health.Part { return s.redis.Seen() }

// anonymous is the role of callers on this machine without a token.
func anonymous(cfg config.Config) api.Role {
	if cfg.API.Anonymous == "none" {
		return ""
	}
	return api.Role(cfg.API.Anonymous)
}

// gateways asks the engine how this container is reached; nil outside of one.
func gateways(engine *docker.Engine, cfg config.Config) func(context.Context) ([]netip.Addr, error) {
	self := engine.Self()
	if self == "" {
		return nil
	}
	return func(ctx context.Context) ([]netip.Addr, error) {
		_, port, err := net.SplitHostPort(cfg.Listen)
		if err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
		return engine.Gateways(ctx, self, port)
	}
}

// wakeups turns the engine's events into reasons to look at once.
func wakeups(ctx context.Context, engine *docker.Engine, names []string) <-chan struct{} {
	events := engine.Events(ctx, names...)
	wake := make(chan struct{}, 1)
	go func() {
		for range events {
			select {
			case wake <- struct{}{}:
			default: // it is about to look anyway
			}
		}
	}()
	return wake
}

func containers(set cluster.Settings, cfg config.Config) []string {
	names := []string{set.PoolerContainer, cfg.Prefix + "redis"}
	for _, n := range set.Nodes {
		names = append(names, n.Container)
	}
	return names
}

// settings hands the configuration to package cluster in its own types.
func settings(cfg config.Config) cluster.Settings {
	set := cluster.Settings{
		Preferred:       cfg.PreferredPrimary,
		PoolerContainer: cfg.Pooler.Container,
		Databases:       cfg.Pooler.Databases,
		Replication:     cluster.ReplicationMode(cfg.Replication.Mode),
		SyncTimeout:     cfg.Replication.SyncTimeout,
		MaxLossBytes:    cfg.Failover.MaxLossBytes,
		MaxLagBytes:     cfg.Failover.MaxLagBytes,
		MinFreeBytes:    cfg.Failover.MinFreeBytes,
		PauseDeadline:   cfg.Failover.PauseDeadline,
		PauseLimit:      pauseLimit,
		Interval:        cfg.Observe.Interval,
	}
	if set.Replication == cluster.Strict {
		set.PauseLimit = cfg.Failover.StrictPauseLimit
	}
	for _, n := range cfg.Nodes {
		set.Nodes = append(set.Nodes, cluster.Node(n))
	}
	if set.Preferred == "" {
		set.Preferred = set.Nodes[0].Name
	}
	return set
}

// pauseLimit is how long the claim on one pause is renewed.
const pauseLimit = 30 * time.Second

func sizes(cfg config.Config) render.Sizes {
	return render.Sizes{
		SharedBuffers: cfg.Postgres.SharedBuffers, MaxConnections: cfg.Postgres.MaxConnections, MaxWALSize: cfg.Postgres.MaxWALSize,
		MaxSlotWALKeepSize: cfg.Postgres.MaxSlotWALKeepSize, MaxPreparedTransactions: cfg.Postgres.MaxPreparedTransactions,
		ArchiveTimeout: cfg.Backup.ArchiveTimeout,
	}
}

// Validate names what is wrong with the settings that only the part which uses them can
// judge. Run begins with it.
func Validate(cfg config.Config) error {
	_, err := timetable(cfg.Backup)
	return err
}

// timetable is what backups are made by themselves, and when.
func timetable(cfg config.Backup) (backup.Timetable, error) {
	cycle, err := backup.ParseCycle(cfg.Cycle)
	if err != nil {
		return backup.Timetable{}, fmt.Errorf("configuration: backup.cycle=%q: %w", cfg.Cycle, err)
	}
	p := backup.Timetable{Cycle: cycle, Expression: cfg.Schedule, Zone: cfg.Zone}
	if cfg.Schedule == "off" {
		return p, nil
	}
	s, err := schedule.Parse(cfg.Schedule, cfg.Zone, cfg.Often)
	if err != nil {
		return backup.Timetable{}, fmt.Errorf("configuration: backup.schedule=%q, backup.zone=%q: %w", cfg.Schedule, cfg.Zone, err)
	}
	p.Next = s.Next
	return p, nil
}

// repository is the volume of the backups, with what pgBackRest is told of it.
func repository(cfg config.Config, nodes []cluster.Node) *volume.Repository {
	r := &volume.Repository{
		ControlDir: cfg.Backup.ControlDir, Root: cfg.Backup.RepositoryDir, Nodes: nodes,
		Settings: render.Repository{
			Stanza: cfg.Backup.Stanza, CompressType: cfg.Backup.CompressType, CompressLevel: cfg.Backup.CompressLevel,
			ProcessMax: cfg.Backup.Processes, StartFast: cfg.Backup.StartFast,
		},
	}
	if cfg.Backup.Encryption != "none" {
		r.Settings.Cipher = cfg.Backup.Encryption
	}
	return r
}
