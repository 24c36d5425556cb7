package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"controld/internal/probe"
)

// A system is a cluster under test.
type system interface {
	// client is how its clients reach it.
	client(mode probe.Mode) probe.Config
	// primary is who leads, reached directly.
	primary(ctx context.Context) (server, error)
	// settled returns when every node is in its place and streams.
	settled(ctx context.Context) error
}

// A failover is what a system did, in its own words.
type failover struct {
	called    time.Time     // when it was asked for
	pause     time.Duration // that it reports; 0: it reports none
	resumed   time.Time     // when it let the clients go; zero: not reported
	steps     []step
	streaming time.Duration // from the end of the pause until the old primary streamed; 0: not reported
}

// A step is a part of a failover.
type step struct {
	name string
	took time.Duration
}

// A result is one run as its clients and the world saw it.
type result struct {
	failover
	since    probe.Stats // counted from the call on
	whole    probe.Stats
	unknown  int // transactions whose fate the clients were not told
	problems []error
}

// A series is a number of runs of one kind.
type series struct {
	name    string
	mode    probe.Mode
	unit    time.Duration // U, just before
	figure  func(result) time.Duration
	peer    bool
	planned bool
	results []result
	refused int // runs that a precheck refused
	allowed int // how many of these there may be
}

// The figures that a series is judged by.
func outage(r result) time.Duration      { return r.whole.Outage.Length() }
func firstCommit(r result) time.Duration { return r.since.FirstCommit }

const (
	warmUp    = time.Second     // of load before the failover
	afterglow = time.Second     // of load after writes flow again
	flowLimit = 2 * time.Minute // until writes flow again
)

// measure runs a series. act fails the system over; judge adds what must hold
// beside that nothing is lost and another node leads.
func (s *series) measure(ctx context.Context, sys system, runs int,
	act func(ctx context.Context, run int, leader server) (failover, error), judge func(*series, result) []error) error {
	if err := sys.settled(ctx); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	leader, err := sys.primary(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	if s.unit, err = probe.U(ctx, leader.dsn); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	progress("%s: U = %s ms", s.name, millis(s.unit))
	for run := range runs {
		r, err := s.once(ctx, sys, run, act)
		if errors.Is(err, errRefused) && s.refused < s.allowed {
			s.refused++
			progress("%s %d/%d: %v", s.name, run+1, runs, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s, run %d: %w", s.name, run+1, err)
		}
		r.problems = append(r.problems, judge(s, r)...)
		s.results = append(s.results, r)
		progress("%s %d/%d: %s ms, failed transactions %d, failed connects %d%s", s.name, run+1, runs,
			millis(s.figure(r)), r.whole.Failed, r.whole.FailedConnects, complaint(r.problems))
	}
	return nil
}

func complaint(problems []error) string {
	if len(problems) == 0 {
		return ""
	}
	return ": " + errors.Join(problems...).Error()
}

func (s *series) once(ctx context.Context, sys system, run int,
	act func(context.Context, int, server) (failover, error)) (result, error) {
	if err := sys.settled(ctx); err != nil {
		return result{}, err
	}
	before, err := sys.primary(ctx)
	if err != nil {
		return result{}, err
	}
	was, err := identify(ctx, before)
	if err != nil {
		return result{}, err
	}
	f, report, err := underLoad(ctx, sys.client(s.mode), func() (failover, error) { return act(ctx, run, before) })
	if err != nil {
		return result{}, err
	}
	r := result{failover: f, since: report.Since(f.called), whole: report.All()}
	return r, r.examine(ctx, sys, before, was, report)
}

// underLoad writes before, during and after what act does.
func underLoad(ctx context.Context, client probe.Config, act func() (failover, error)) (failover, *probe.Report, error) {
	p, err := probe.Start(ctx, client)
	if err != nil {
		return failover{}, nil, err
	}
	f, err := func() (failover, error) {
		if err := wait(ctx, warmUp); err != nil {
			return failover{}, err
		}
		f, err := act()
		if err != nil {
			return f, err
		}
		flowing, cancel := context.WithTimeout(ctx, flowLimit)
		defer cancel()
		if err := p.WaitCommit(flowing, time.Now()); err != nil {
			return f, err
		}
		return f, wait(ctx, afterglow)
	}()
	return f, p.Stop(), err
}

// examine asks the world: who leads, and what is there.
func (r *result) examine(ctx context.Context, sys system, before server, was identity, report *probe.Report) error {
	after, err := sys.primary(ctx)
	if err != nil {
		return err
	}
	is, err := identify(ctx, after)
	if err != nil {
		return err
	}
	verdict, err := report.Check(ctx, after.dsn)
	if err != nil {
		return err
	}
	r.unknown = verdict.Unknown
	for _, problem := range []error{successorErr(before, after, was, is), verdict.Err()} {
		if problem != nil {
			r.problems = append(r.problems, problem)
		}
	}
	return nil
}

// values are the figures of all runs, sorted.
func (s *series) values(figure func(result) time.Duration) []time.Duration {
	values := make([]time.Duration, 0, len(s.results))
	for _, r := range s.results {
		values = append(values, figure(r))
	}
	slices.Sort(values)
	return values
}

func (s *series) sum(count func(result) int) int {
	sum := 0
	for _, r := range s.results {
		sum += count(r)
	}
	return sum
}

func (s *series) most(count func(result) int) int {
	most := 0
	for _, r := range s.results {
		most = max(most, count(r))
	}
	return most
}

// stepMedians are the median times of the steps, in the order of the first run
// that has them.
func (s *series) stepMedians() []step {
	var names []string
	took := map[string][]time.Duration{}
	for _, r := range s.results {
		for _, st := range r.steps {
			if took[st.name] == nil {
				names = append(names, st.name)
			}
			took[st.name] = append(took[st.name], st.took)
		}
	}
	var medians []step
	for _, name := range names {
		slices.Sort(took[name])
		medians = append(medians, step{name, probe.Quantile(took[name], 0.5)})
	}
	return medians
}
