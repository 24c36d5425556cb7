package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// describeMachine tells what figures depend on, and no names: neither of the
// host nor of anything on it.
func describeMachine(sh shell) []string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	about := []string{fmt.Sprintf("%d cores (%s)", runtime.NumCPU(), runtime.GOARCH)}
	if memory := memoryGiB("/proc/meminfo"); memory > 0 {
		about = append(about, fmt.Sprintf("%.0f GiB", memory))
	}
	if kernel, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		version, _, _ := strings.Cut(strings.TrimSpace(string(kernel)), "-")
		about = append(about, "kernel "+version)
	}
	const format = "Docker {{.ServerVersion}}, storage driver {{.Driver}}, cgroup v{{.CgroupVersion}}"
	if engine, err := sh.run(ctx, "docker", "info", "--format", format); err == nil {
		about = append(about, engine)
	}
	return append(about, runtime.Version())
}

func memoryGiB(meminfo string) float64 {
	f, err := os.Open(meminfo)
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib float64
		if _, err := fmt.Sscanf(lines.Text(), "MemTotal: %f kB", &kib); err == nil {
			return kib / (1 << 20)
		}
	}
	return 0
}
