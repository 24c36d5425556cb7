// Command controld-node is the first process of the containers that controld
// manages: of a PostgreSQL server (controld-node postgres), of PgBouncer
// (controld-node pgbouncer) and of the host of backups (controld-node pgbackrest).
// It is also what a server's restore_command calls (controld-node restore-wal),
// what stands before pgBackRest under its name, and what archives a file of the log that no
// server archives (controld-node push-wal).
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"controld/internal/node"
	"controld/internal/node/archive"
	"controld/internal/node/child"
	"controld/internal/node/pooler"
	"controld/internal/node/runner"
	"controld/internal/node/server"
)

func main() {
	if filepath.Base(os.Args[0]) == filepath.Base(archive.Link) {
		os.Exit(archive.Main(context.Background(), os.Args[1:]))
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if (len(os.Args) == 5 || len(os.Args) == 6) && os.Args[1] == "restore-wal" {
		os.Exit(restoreWAL(os.Args[2], os.Args[3], os.Args[4], os.Args[5:]))
	}
	if len(os.Args) > 2 && os.Args[1] == archive.PushProgram {
		os.Exit(archive.Push(context.Background(), os.Args[2], os.Args[3:]))
	}
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: controld-node postgres|pgbouncer|pgbackrest, or "+
			"controld-node restore-wal DATADIR NAME PATH [STANZA]")
		os.Exit(2)
	}
	code, err := run(os.Args[1], log)
	if err != nil {
		log.Error("init failed", "err", err)
	}
	os.Exit(code)
}

// restoreWAL returns the exit code that PostgreSQL expects: 1 where the file is
// not there, and above 125 where recovery must stop instead of taking that for
// the end of the WAL. What the other node does not have the archive of the stanza,
// where one is named, may have.
func restoreWAL(dataDir, name, path string, stanza []string) int {
	err := node.RestoreWAL(dataDir, name, path)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, node.ErrNoWAL) && len(stanza) > 0:
		return archive.Get(context.Background(), stanza[0], name, path)
	case errors.Is(err, node.ErrNoWAL):
		return 1
	}
	fmt.Fprintln(os.Stderr, err)
	return 126
}

func run(what string, log *slog.Logger) (int, error) {
	reaper := child.NewReaper()
	defer reaper.Close()
	switch what {
	case "postgres":
		// Signals that come after the first are taken and change nothing.
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGQUIT)
		defer stop()
		dir := os.Getenv("NODE_DIR")
		if dir == "" {
			return 2, errors.New("NODE_DIR is not set: it names the node's data volume, such as /pg/node1")
		}
		if err := server.New(server.DefaultConfig(dir), reaper, log.With("node", dir)).Run(ctx); err != nil {
			return 1, err
		}
		return 0, nil
	case "pgbackrest":
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGQUIT)
		defer stop()
		if err := runner.New(runner.BackRest(), reaper, log).Run(ctx); err != nil {
			return 1, err
		}
		return 0, nil
	case "pgbouncer":
		signals := make(chan os.Signal, 8)
		signal.Notify(signals, unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
		defer signal.Stop(signals)
		return pooler.New(pooler.DefaultConfig(), reaper, log).Run(context.Background(), signals)
	}
	return 2, fmt.Errorf("unknown init %q: postgres, pgbouncer or pgbackrest", what)
}
