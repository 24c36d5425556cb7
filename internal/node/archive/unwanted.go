package archive

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"controld/internal/node"
)

// orderDir is where the node's orders and settings are mounted.
const orderDir = "/order"

// roleFile holds the server's archive_command.
const roleFile = "role.conf"

// How long a push may go on that nobody waits for. An archiver that is inside a command
// keeps its server from ending, and the clients of a failover wait for that.
const (
	unwantedEvery = 50 * time.Millisecond
	quietTime     = 200 * time.Millisecond // after archiving was turned off, as before a failover's pause
	stoppingTime  = 3 * time.Second        // after the server was told to stop; then each further push fails at once
)

var (
	errQuiet    = errors.New("archiving was turned off")
	errStopping = errors.New("the server stops")
)

// untilUnwanted cancels a push when the server that it is for archives nothing any more, or
// stops, and has waited for it long enough. What is not pushed stays on the server's list.
func untilUnwanted(ctx context.Context, cancel context.CancelCauseFunc, nodeDir, orderDir string) {
	ticker := time.NewTicker(unwantedEvery)
	defer ticker.Stop()
	var quiet time.Time
	for {
		if archives(orderDir) {
			quiet = time.Time{}
		} else if quiet.IsZero() {
			quiet = time.Now()
		}
		switch {
		case !quiet.IsZero() && time.Since(quiet) >= quietTime:
			cancel(errQuiet)
			return
		case stoppedFor(nodeDir) >= stoppingTime:
			cancel(errStopping)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// archives reports whether the settings have the server archive; also where nobody can tell.
func archives(orderDir string) bool {
	text, err := os.ReadFile(filepath.Join(orderDir, roleFile))
	return err != nil || strings.Contains(string(text), "archive-push")
}

// stoppedFor is how long ago the server was told to stop; 0: it was not.
func stoppedFor(nodeDir string) time.Duration {
	s, err := node.ReadStatus(nodeDir)
	if err != nil || s.State != node.StateStopping {
		return 0
	}
	return time.Since(s.At)
}
