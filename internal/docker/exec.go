package docker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
)

// execOutputBytes is what is kept of what a command says, of each stream.
const execOutputBytes = 1 << 20

// Exec implements cluster.Engine.
func (e *Engine) Exec(ctx context.Context, name string, command []string, stdin string) (string, error) {
	out, err := e.exec(ctx, name, command, stdin)
	if err != nil {
		return "", fmt.Errorf("%s in container %s: %w", command[0], name, err)
	}
	return out, nil
}

func (e *Engine) exec(ctx context.Context, name string, command []string, stdin string) (string, error) {
	created, err := e.api.ContainerExecCreate(ctx, name, container.ExecOptions{
		Cmd: command, AttachStdin: true, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		return "", err
	}
	attached, err := e.api.ContainerExecAttach(ctx, created.ID, container.ExecAttachOptions{})
	if err != nil {
		return "", err
	}
	defer attached.Close()
	stop := context.AfterFunc(ctx, attached.Close) // the copies below know no context
	defer stop()
	go func() {
		_, _ = io.WriteString(attached.Conn, stdin) // one that reads nothing may have ended
		_ = attached.CloseWrite()
	}()
	var stdout, stderr bounded
	if _, err := stdcopy.StdCopy(&stdout, &stderr, attached.Reader); err != nil || ctx.Err() != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", fmt.Errorf("it may go on: %w", err)
	}
	ended, err := e.api.ContainerExecInspect(ctx, created.ID)
	if err != nil {
		return "", err
	}
	if ended.ExitCode != 0 {
		return "", fmt.Errorf("exit code %d: %s", ended.ExitCode, lastLines(stderr.String()))
	}
	return stdout.String(), nil
}

// A bounded keeps the first execOutputBytes that are written to it.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := execOutputBytes - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// lastLines are the last three lines of a text, as one.
func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "; ")
}
