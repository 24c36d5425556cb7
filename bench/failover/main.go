// Failover measures what the clients of a cluster see of its failovers, and
// writes the figures into docs/benchmarks.md.
//
//	go run ./bench/failover                         # everything: about 10 minutes
//	go run ./bench/failover -runs 5 -emergency 3    # a first impression
//	go run ./bench/failover -runs 0 -emergency 0 -busy 0 -stalled 0 -idle 0    # only the peer
//	go run ./bench/failover -peer none              # without the peer, whose image then is not built
//
// It needs what make up needs, and an otherwise idle machine. It starts clusters
// of its own beside any other, on free ports and under a random prefix, and
// removes them again, also after a failure or Ctrl-C.
//
// # What is measured
//
// Eight clients write one small transaction every 20 ms each, without retries.
// The outage is the longest time between two successive acknowledged commits of
// all of them together. A planned failover is one POST /failover or /failback;
// an emergency is docker kill -s KILL of the primary's container, then POST
// /failover. After each run the rows that the new primary returns are held
// against what the clients were told, and the world against what the API said.
//
// Machines differ in what starting and ending a process costs, which is most of
// a failover. So times are given in ms and in U: the median of 40 direct
// connects with their login, a select 1 and the close, on the idle primary just
// before the series.
//
// WAL is archived all the time. In one series the repository hangs: whoever pushes into it
// waits until he is ended.
//
// The host is made busy by 40 clients whose queries calculate, through the pooler:
// twenty times what two cores can do. U is measured under that load there.
//
// What an idle cluster costs is read from the control groups of its containers and
// from the engine's daemons, for a minute with controld and a minute without.
//
// # The peer
//
// Patroni (Debian's package) with etcd, its timings tuned below the documented
// minimum, PostgreSQL's settings those of controld. The same clients reach it by
// a DSN with both hosts and target_session_attrs=read-write, as its
// documentation shows.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"controld/internal/testcluster"
)

type options struct {
	runs      int
	emergency int
	busy      int
	stalled   int
	peer      string
	peerRuns  int
	idle      time.Duration
	out       string
	verbose   bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parse(os.Args[1:])
	if err != nil {
		os.Exit(2)
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/failover:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("failover", flag.ContinueOnError)
	flags.IntVar(&o.runs, "runs", 20, "planned failovers in each series: plain, prepared statements, open transactions of 50 ms")
	flags.IntVar(&o.emergency, "emergency", 10, "emergency failovers")
	flags.IntVar(&o.busy, "busy", 20, "planned failovers on a busy host")
	flags.IntVar(&o.stalled, "stalled", 10, "planned failovers with a repository that hangs")
	flags.StringVar(&o.peer, "peer", "patroni", "what to measure beside it: patroni or none")
	flags.IntVar(&o.peerRuns, "peer-runs", 10, "planned switchovers of the peer")
	flags.DurationVar(&o.idle, "idle", time.Minute,
		"for how long what an idle cluster costs is measured, with controld and without; 0: not")
	flags.StringVar(&o.out, "out", "docs/benchmarks.md", "file whose section is written; empty: none")
	flags.BoolVar(&o.verbose, "v", false, "show what make and docker print")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.peer != "patroni" && o.peer != "none" {
		fmt.Fprintf(os.Stderr, "-peer %s: use patroni or none\n", o.peer)
		return o, flag.ErrHelp
	}
	return o, nil
}

// run measures one system after the other, so that neither disturbs the other,
// and writes what it has even if a later part fails.
func run(ctx context.Context, o options) error {
	root, err := testcluster.ModuleRoot()
	if err != nil {
		return err
	}
	sh := shell{dir: root, verbose: o.verbose}
	var doc document
	var errs []error
	if o.runs+o.emergency+o.busy+o.stalled > 0 || o.idle > 0 {
		errs = append(errs, withProduct(ctx, sh, func(p *product) error { return measureProduct(ctx, o, p, &doc) }))
	}
	if o.peer == "patroni" && o.peerRuns > 0 && ctx.Err() == nil {
		errs = append(errs, withPatroni(ctx, sh, func(p *patroni) error { return measurePeer(ctx, o, p, &doc) }))
	}
	if len(doc.series) == 0 && len(doc.idle.parts) == 0 {
		return errors.Join(errs...)
	}
	doc.machine = describeMachine(sh)
	fmt.Println(doc.render())
	if o.out != "" {
		if !filepath.IsAbs(o.out) {
			o.out = filepath.Join(root, o.out)
		}
		errs = append(errs, writeSection(o.out, doc.render()))
	}
	return errors.Join(append(errs, doc.verdict())...)
}
