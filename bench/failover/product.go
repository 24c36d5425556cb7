package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"controld/internal/probe"
	"controld/internal/testcluster"
)

const (
	// A connection opened in a pause is held by the pooler and must be waited for.
	poolerConnectTimeout = 30 * time.Second
	// openFor is how long the transactions of that series stay open.
	openFor = 50 * time.Millisecond
	// openEvery is the pace of new connections: one comes in every pause that
	// is longer.
	openEvery = 40 * time.Millisecond
)

// A product is a cluster of controld's.
type product struct {
	sh       shell
	prefix   string
	api      api
	database string   // the clients' endpoint
	nodes    []server // reached directly
	stalled  bool     // its repository hangs
}

// withProduct brings a cluster up, hands it to use and removes it.
func withProduct(ctx context.Context, sh shell, use func(*product) error) (err error) {
	p, err := newProduct(ctx, sh)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remove(ctx)) }()
	if err := p.bringUp(ctx); err != nil {
		return err
	}
	return use(p)
}

func newProduct(ctx context.Context, sh shell) (*product, error) {
	p := &product{sh: sh, prefix: randomPrefix()}
	ports, err := testcluster.FreePorts(ctx, 5)
	if err != nil {
		return nil, err
	}
	subnet, err := testcluster.FreeSubnet()
	if err != nil {
		return nil, err
	}
	// The caller's shell may be set up for another cluster. Nothing of that is passed
	// on: that cluster's secrets would be removed with this one.
	p.sh.env = []string{"CONTROLD_PREFIX=" + p.prefix, "CONTROLD_SUBNET=" + subnet,
		"CONTROLD_TAG=bench", "CONTROLD_SECRETS_DIR=", "CONTROLD_SETTINGS="}
	for i, name := range []string{"NODE1", "NODE2", "POOLER", "REDIS", "API"} {
		p.sh.env = append(p.sh.env, "CONTROLD_PORT_"+name+"="+ports[i])
	}
	return p, nil
}

func (p *product) bringUp(ctx context.Context) error {
	progress("make up, prefix %s", p.prefix)
	if _, err := p.sh.run(ctx, "make", "up"); err != nil {
		return err
	}
	return poll(ctx, time.Second, p.readEnv)
}

// readEnv learns the addresses as a shell would. It fails as long as the cluster
// has no standby.
func (p *product) readEnv(ctx context.Context) error {
	const script = `env=$(make -s env) && eval "$env" &&
		printf '%s\n' "$CONTROLD_URL" "$CONTROLD_TOKEN" "$DATABASE_URL" "${PRIMARY_URL:?}" "${STANDBY_URL:?}"`
	out, err := p.sh.run(ctx, "bash", "-c", script)
	if err != nil {
		return err
	}
	values := strings.Split(out, "\n")
	if len(values) != 5 {
		return fmt.Errorf("make env: %d values instead of 5", len(values))
	}
	p.api, p.database = newAPI(values[0], values[1]), values[2]
	topology, err := p.topology(ctx)
	if err != nil {
		return err
	}
	p.nodes = []server{{topology.Primary, values[3]}}
	for _, n := range topology.Nodes {
		if n.Role == "standby" {
			p.nodes = append(p.nodes, server{n.Name, values[4]})
		}
	}
	if len(p.nodes) != 2 {
		return fmt.Errorf("the cluster has %d nodes in a role instead of 2", len(p.nodes))
	}
	return nil
}

// A topology is what GET /cluster answers, as far as it is needed here.
type topology struct {
	Primary string `json:"primary"`
	Nodes   []struct {
		Name string `json:"name"`
		Role string `json:"role"`
	} `json:"nodes"`
}

func (p *product) topology(ctx context.Context) (topology, error) {
	var t topology
	err := p.api.get(ctx, "/cluster", &t)
	return t, err
}

func (p *product) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	progress("make destroy, prefix %s", p.prefix)
	if _, err := p.sh.run(ctx, "make", "destroy", "YES=1", "BACKUPS=yes"); err != nil {
		return fmt.Errorf("the cluster is left behind; remove it with CONTROLD_PREFIX=%s make destroy: %w", p.prefix, err)
	}
	return nil
}

func (p *product) client(mode probe.Mode) probe.Config {
	return probe.Config{
		DSN:                p.database,
		Mode:               mode,
		Think:              openFor,
		ConnectTimeout:     poolerConnectTimeout,
		NewConnectionEvery: openEvery,
	}
}

func (p *product) primary(ctx context.Context) (server, error) {
	return findLeader(ctx, p.nodes)
}

func (p *product) settled(ctx context.Context) error {
	return poll(ctx, 200*time.Millisecond, func(ctx context.Context) error {
		var health struct {
			Components []struct {
				Name   string `json:"name"`
				Status string `json:"status"`
			} `json:"components"`
		}
		if err := p.api.get(ctx, "/health", &health); err != nil {
			return err
		}
		for _, c := range health.Components {
			if c.Status != "ok" && !(p.stalled && (c.Name == "backups" || c.Name == "archiving")) {
				return fmt.Errorf("%s is %s", c.Name, c.Status)
			}
		}
		return nil
	})
}

// stall has every access to the repository hang, or no more: whoever reads this file waits
// for a writer.
func (p *product) stall(ctx context.Context, yes bool) error {
	do := `mv $f $f.kept; mkfifo $f`
	if !yes {
		do = `rm $f; mv $f.kept $f`
	}
	_, err := p.sh.run(ctx, "docker", "exec", "-u", "5432", p.prefix+"pgbackrest", "sh", "-ec",
		"f=$(echo /var/lib/pgbackrest/[0-9]*/archive/main/archive.info); "+do)
	p.stalled = yes
	return err
}

// planned moves the primary there by a failover, and back by a failback. The first of
// the nodes led the new cluster, so it is the preferred one.
func (p *product) planned(ctx context.Context, _ int, leader server) (failover, error) {
	if leader.name == p.nodes[0].name {
		return p.do(ctx, "/failover")
	}
	return p.do(ctx, "/failback")
}

// emergency kills the primary's container, and asks for help after.
func (p *product) emergency(ctx context.Context, _ int, leader server) (failover, error) {
	if _, err := p.sh.run(ctx, "docker", "kill", "-s", "KILL", p.prefix+leader.name); err != nil {
		return failover{}, err
	}
	return p.do(ctx, "/failover")
}

func (p *product) do(ctx context.Context, path string) (failover, error) {
	op, called, err := p.api.start(ctx, path)
	if err != nil {
		return failover{}, err
	}
	return failover{
		called:    called,
		pause:     op.duration("pause_ms"),
		resumed:   op.resumed(),
		steps:     op.steps(),
		streaming: op.duration("rejoin_ms"),
	}, nil
}

// judgePlanned is what the README promises of a planned failover.
func judgePlanned(s *series, r result) []error {
	var wrong []error
	if r.whole.Failed+r.whole.FailedConnects > 0 {
		wrong = append(wrong, fmt.Errorf("%d transactions and %d connects failed", r.whole.Failed, r.whole.FailedConnects))
	}
	if r.whole.OpeningsHeld == 0 && r.pause > openEvery {
		wrong = append(wrong, errors.New("no new connection was opened during the pause"))
	}
	allowed := r.pause + 6*s.unit
	if s.mode == probe.Tx {
		allowed += openFor // the first commit cannot come sooner
	}
	switch longest := outage(r); {
	case r.pause == 0:
		wrong = append(wrong, errors.New("no pause_ms is reported"))
	case longest < r.pause:
		wrong = append(wrong, fmt.Errorf("the reported pause of %s ms is longer than the outage", millis(r.pause)))
	case longest > allowed:
		wrong = append(wrong, fmt.Errorf("the reported pause of %s ms explains only %s ms of the outage", millis(r.pause), millis(allowed)))
	}
	return wrong
}

func judgeEmergency(_ *series, r result) []error {
	if r.since.FailedPerConnection > 2 {
		return []error{fmt.Errorf("%d transactions failed on one connection", r.since.FailedPerConnection)}
	}
	return nil
}

func measureProduct(ctx context.Context, o options, p *product, doc *document) error {
	doc.versions = append(doc.versions, p.versions(ctx)...)
	if o.idle > 0 {
		if err := p.settled(ctx); err != nil {
			return err
		}
		var err error
		if doc.idle, err = measureIdle(ctx, p, o.idle); err != nil {
			return err
		}
	}
	for _, s := range []*series{
		{name: "planned", mode: probe.Exec, planned: true},
		{name: "planned, prepared statements", mode: probe.Prepared, planned: true},
		{name: "planned, transactions of 50 ms", mode: probe.Tx, planned: true},
	} {
		s.figure = outage
		err := s.measure(ctx, p, o.runs, p.planned, judgePlanned)
		doc.add(s)
		if err != nil {
			return err
		}
	}
	s := &series{name: "emergency, call → first commit", mode: probe.Exec, figure: firstCommit}
	err := s.measure(ctx, p, o.emergency, p.emergency, judgeEmergency)
	doc.add(s)
	if err == nil && o.stalled > 0 {
		err = measureStalled(ctx, o.stalled, p, doc)
	}
	if err != nil || o.busy == 0 {
		return err
	}
	return measureBusy(ctx, o.busy, p, doc)
}

// measureStalled repeats the planned failovers with a repository that hangs.
func measureStalled(ctx context.Context, runs int, p *product, doc *document) error {
	if err := p.stall(ctx, true); err != nil {
		return err
	}
	s := &series{name: "planned, repository hangs", mode: probe.Exec, planned: true, figure: outage}
	err := s.measure(ctx, p, runs, p.planned, judgePlanned)
	doc.add(s)
	return errors.Join(err, p.stall(context.WithoutCancel(ctx), false))
}

// busyClients calculate on the busy host; the pooler lets half of them in at once.
const busyClients = 40

// measureBusy repeats the planned failovers on a host that is busy. One in ten may
// be refused there.
func measureBusy(ctx context.Context, runs int, p *product, doc *document) error {
	busy, err := probe.StartBusy(ctx, p.database, busyClients)
	if err != nil {
		return err
	}
	s := &series{name: "planned, busy host", mode: probe.Exec, figure: outage, allowed: runs / 10}
	err = s.measure(ctx, p, runs, p.planned, judgeBusy)
	doc.add(s)
	return errors.Join(err, busy.Stop())
}

func judgeBusy(_ *series, r result) []error {
	if r.whole.Failed+r.whole.FailedConnects > 0 {
		return []error{fmt.Errorf("%d transactions and %d connects failed", r.whole.Failed, r.whole.FailedConnects)}
	}
	return nil
}

func (p *product) versions(ctx context.Context) []string {
	versions := []string{"controld's cluster: "}
	if out, err := p.sh.run(ctx, "docker", "exec", p.prefix+"postgres_master", "postgres", "--version"); err == nil {
		versions[0] += strings.TrimSpace(out)
	}
	if out, err := p.sh.run(ctx, "docker", "exec", p.prefix+"pgbouncer", "pgbouncer", "--version"); err == nil {
		first, _, _ := strings.Cut(out, "\n")
		versions[0] += ", " + first
	}
	return versions
}
