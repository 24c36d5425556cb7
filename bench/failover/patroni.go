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

// patroniImage is built when the peer is asked for; it stays, like any image.
const patroniImage = "controld/bench-patroni:dev"

// A patroni is a cluster of two nodes under Patroni, with one etcd.
type patroni struct {
	sh     shell
	prefix string
	nodes  []server // the clients' database
	admin  []server // the same nodes, for the superuser
}

// withPatroni brings a cluster up, hands it to use and removes it.
func withPatroni(ctx context.Context, sh shell, use func(*patroni) error) (err error) {
	p := &patroni{sh: sh, prefix: randomPrefix()}
	defer func() { err = errors.Join(err, p.remove(ctx)) }()
	if err := p.bringUp(ctx); err != nil {
		return fmt.Errorf("patroni: %w", err)
	}
	return use(p)
}

func (p *patroni) bringUp(ctx context.Context) error {
	progress("patroni, prefix %s", p.prefix)
	if err := p.build(ctx); err != nil {
		return err
	}
	subnet, err := testcluster.FreeSubnet()
	if err != nil {
		return err
	}
	label := "controld.bench=" + p.prefix
	network, etcd := p.prefix+"net", p.prefix+"etcd"
	if _, err := p.sh.run(ctx, "docker", "network", "create", "--label", label, "--subnet", subnet, network); err != nil {
		return err
	}
	common := []string{"run", "-d", "--label", label, "--network", network, "--shm-size", "256m", "-p", "127.0.0.1::5432"}
	start := func(name string, args ...string) error {
		_, err := p.sh.run(ctx, "docker", append(append(common, "--name", name, patroniImage), args...)...)
		return err
	}
	if err := start(etcd, "etcd", etcd); err != nil {
		return err
	}
	for _, name := range []string{p.prefix + "node1", p.prefix + "node2"} {
		if err := start(name, "node", name, etcd); err != nil {
			return err
		}
		if err := p.learnAddress(ctx, name); err != nil {
			return err
		}
	}
	return p.makeDatabase(ctx)
}

func (p *patroni) build(ctx context.Context) error {
	if _, err := p.sh.run(ctx, "deploy/images/base.sh", "bookworm"); err != nil {
		return err
	}
	_, err := p.sh.run(ctx, "docker", "build", "-q",
		"--build-arg", "BASE=controld/base:bookworm", "-t", patroniImage, "bench/failover/patroni")
	return err
}

func (p *patroni) learnAddress(ctx context.Context, name string) error {
	out, err := p.sh.run(ctx, "docker", "port", name, "5432/tcp")
	if err != nil {
		return err
	}
	address, _, _ := strings.Cut(out, "\n")
	p.nodes = append(p.nodes, server{name, "postgres://app:bench@" + address + "/app?sslmode=disable"})
	p.admin = append(p.admin, server{name, "postgres://postgres:bench@" + address + "/postgres?sslmode=disable"})
	return nil
}

// makeDatabase makes what the clients use, as soon as there is a primary.
func (p *patroni) makeDatabase(ctx context.Context) error {
	return poll(ctx, time.Second, func(ctx context.Context) error {
		leader, err := leaderNow(ctx, p.admin)
		if err != nil {
			return err
		}
		_, err = p.sh.run(ctx, "docker", "exec", leader.name, "psql", "-h", "/tmp", "-U", "postgres", "-v", "ON_ERROR_STOP=1",
			"-c", "create role app login password 'bench'", "-c", "create database app owner app")
		return err
	})
}

func (p *patroni) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	label := "label=controld.bench=" + p.prefix
	const script = `docker ps -aq --filter "$0" | xargs -r docker rm -fv && docker network ls -q --filter "$0" | xargs -r docker network rm`
	if _, err := p.sh.run(ctx, "sh", "-c", script, label); err != nil {
		return fmt.Errorf("the peer is left behind; its containers and network carry the %s: %w", label, err)
	}
	return nil
}

// client is kind to the peer: a dead host is given up after 250 ms, where
// libpq's shortest wait is 2 s, and no further client opens connections beside
// the writers.
func (p *patroni) client(mode probe.Mode) probe.Config {
	var hosts []string
	for _, n := range p.nodes {
		host, _, _ := strings.Cut(strings.TrimPrefix(n.dsn, "postgres://app:bench@"), "/")
		hosts = append(hosts, host)
	}
	return probe.Config{
		DSN:            "postgres://app:bench@" + strings.Join(hosts, ",") + "/app?sslmode=disable&target_session_attrs=read-write",
		Mode:           mode,
		ConnectTimeout: 250 * time.Millisecond,
	}
}

func (p *patroni) primary(ctx context.Context) (server, error) {
	return findLeader(ctx, p.nodes)
}

// settled waits until the standby streams and Patroni itself knows it. That takes it
// another loop, and before that it refuses a switchover.
func (p *patroni) settled(ctx context.Context) error {
	err := poll(ctx, 300*time.Millisecond, func(ctx context.Context) error {
		leader, err := leaderNow(ctx, p.admin)
		if err != nil {
			return err
		}
		var streaming int
		if err := query(ctx, leader.dsn, "select count(*) from pg_stat_replication where state = 'streaming'", &streaming); err != nil {
			return err
		}
		if streaming != 1 {
			return fmt.Errorf("%d standbys stream from %s", streaming, leader.name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return wait(ctx, 3*time.Second)
}

// switchover is Patroni's planned failover, at whatever moment of its loop.
func (p *patroni) switchover(ctx context.Context, _ int, leader server) (failover, error) {
	standby := p.nodes[0].name
	if standby == leader.name {
		standby = p.nodes[1].name
	}
	f := failover{called: time.Now()}
	_, err := p.sh.run(ctx, "docker", "exec", standby, "patronictl", "-c", "/tmp/patroni.yml", "switchover", "--force")
	return f, err
}

func measurePeer(ctx context.Context, o options, p *patroni, doc *document) error {
	doc.versions = append(doc.versions, p.versions(ctx))
	s := &series{name: "Patroni, switchover", mode: probe.Exec, figure: outage, planned: true, peer: true}
	err := s.measure(ctx, p, o.peerRuns, p.switchover, func(*series, result) []error { return nil })
	doc.add(s)
	return err
}

func (p *patroni) versions(ctx context.Context) string {
	const script = `patroni --version; etcd --version | head -n 1; postgres --version`
	out, err := p.sh.run(ctx, "docker", "exec", p.nodes[0].name, "sh", "-c", script)
	if err != nil {
		return "peer: " + err.Error()
	}
	return "peer: " + strings.ReplaceAll(out, "\n", ", ")
}
