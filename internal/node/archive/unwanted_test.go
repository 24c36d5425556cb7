package archive

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"controld/internal/node"
)

// A push ends soon after nobody wants it any more, and not before.
func TestUnwantedPushesEnd(t *testing.T) {
	const on, off = "archive_command = '/usr/local/bin/pgbackrest --stanza=main archive-push \"%p\"'\n", "archive_command = ''\n"
	for _, tt := range []struct {
		name     string
		settings string // empty: no such file
		state    node.State
		want     error // the cause of its end; nil: it goes on
		after    time.Duration
	}{
		{"archiving is on", on, node.StateRunning, nil, 0},
		{"archiving is off", off, node.StateRunning, errQuiet, quietTime},
		{"the server stops", on, node.StateStopping, errStopping, stoppingTime},
		{"both", off, node.StateStopping, errQuiet, quietTime},
		{"nobody can tell", "", "", nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodeDir, orderDir := t.TempDir(), t.TempDir()
				if tt.settings != "" {
					if err := os.WriteFile(filepath.Join(orderDir, roleFile), []byte(tt.settings), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if err := node.WriteStatus(nodeDir, node.Status{State: tt.state, At: time.Now()}); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				began := time.Now()
				go untilUnwanted(ctx, cancel, nodeDir, orderDir)
				select {
				case <-ctx.Done():
				case <-time.After(time.Minute):
				}
				if tt.want == nil && ctx.Err() != nil || tt.want != nil && !errors.Is(context.Cause(ctx), tt.want) {
					t.Fatalf("ended: %v, want %v", context.Cause(ctx), tt.want)
				}
				if took := time.Since(began); tt.want != nil && (took < tt.after || took > tt.after+2*unwantedEvery) {
					t.Errorf("ended after %s, want %s", took, tt.after)
				}
			})
		})
	}
}
