package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// An idle is what a cluster costs that nobody uses, with controld and while controld is
// stopped. Each part is in seconds of a processor in a second.
type idle struct {
	over  time.Duration
	parts []idlePart
}

type idlePart struct {
	name          string
	with, without float64
}

// cost is what controld costs, and what it makes others use: by how much less is used
// while it is stopped.
func (i idle) cost() float64 {
	sum := 0.0
	for _, p := range i.parts {
		sum += p.with - p.without
	}
	return sum
}

const (
	idleLimit = 0.02 // of a core
	settle    = 20 * time.Second
)

func (i idle) render(b *strings.Builder) {
	if len(i.parts) == 0 {
		return
	}
	fmt.Fprintf(b, "\n| idle, %% of a core over %s | with controld | controld stopped |\n|---|---|---|\n", i.over)
	for _, p := range i.parts {
		fmt.Fprintf(b, "| %s | %.2f | %.2f |\n", p.name, 100*p.with, 100*p.without)
	}
	fmt.Fprintf(b, "\ncontrold and what it causes, idle: %.2f %% of a core.\n", 100*i.cost())
}

// measureIdle reads what each container and the engine have used, twice, with
// controld and without.
func measureIdle(ctx context.Context, p *product, over time.Duration) (idle, error) {
	services := []string{"controld", "postgres_master", "postgres_slave", "pgbouncer", "redis"}
	i := idle{over: over}
	with, err := p.usage(ctx, services, over)
	if err != nil {
		return i, err
	}
	if _, err := p.sh.run(ctx, "docker", "stop", p.prefix+"controld"); err != nil {
		return i, err
	}
	without, err := p.usage(ctx, services[1:], over)
	if err != nil {
		return i, err
	}
	if _, err := p.sh.run(ctx, "docker", "start", p.prefix+"controld"); err != nil {
		return i, err
	}
	for _, name := range append(services, "the engine") {
		i.parts = append(i.parts, idlePart{name, with[name], without[name]})
		progress("idle: %s %.2f %% of a core, %.2f without controld", name, 100*with[name], 100*without[name])
	}
	return i, nil
}

// usage is the share of a processor that each part uses in a while.
func (p *product) usage(ctx context.Context, services []string, over time.Duration) (map[string]float64, error) {
	if err := wait(ctx, settle); err != nil {
		return nil, err
	}
	before, err := p.used(ctx, services)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := wait(ctx, over); err != nil {
		return nil, err
	}
	after, err := p.used(ctx, services)
	if err != nil {
		return nil, err
	}
	share := map[string]float64{}
	for name := range after {
		share[name] = (after[name] - before[name]).Seconds() / time.Since(began).Seconds()
	}
	return share, nil
}

// readUsage prints what the control group has used of processors: in ns, or as
// cgroup v2 does.
const readUsage = `cat /sys/fs/cgroup/cpu.stat 2>/dev/null || cat /sys/fs/cgroup/cpuacct/cpuacct.usage`

func (p *product) used(ctx context.Context, services []string) (map[string]time.Duration, error) {
	used := map[string]time.Duration{}
	for _, name := range services {
		out, err := p.sh.run(ctx, "docker", "exec", p.prefix+name, "sh", "-c", readUsage)
		if err != nil {
			return nil, err
		}
		if used[name], err = parseUsage(out); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	var err error
	used["the engine"], err = engineUsed("/proc")
	return used, err
}

func parseUsage(text string) (time.Duration, error) {
	for line := range strings.Lines(text) {
		if us, found := strings.CutPrefix(strings.TrimSpace(line), "usage_usec "); found {
			n, err := strconv.ParseInt(us, 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	return time.Duration(n), err
}

// tick is what the kernel counts processes' time in, on every architecture that
// Debian has: USER_HZ in proc(5).
const tick = 10 * time.Millisecond

// engineUsed adds up what the engine's daemons on this machine have used; 0 where
// the engine is elsewhere.
func engineUsed(proc string) (time.Duration, error) {
	stats, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "stat"))
	if err != nil {
		return 0, err
	}
	sum := time.Duration(0)
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		name, rest, _ := strings.Cut(string(data), ") ")
		_, name, _ = strings.Cut(name, "(")
		fields := strings.Fields(rest)
		if name != "dockerd" && name != "containerd" || len(fields) < 13 {
			continue
		}
		for _, field := range fields[11:13] { // utime, stime
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", path, err)
			}
			sum += time.Duration(n) * tick
		}
	}
	return sum, nil
}
