package dockertest

import (
	"strings"
	"testing"
	"time"
)

// A Redis is one server, with the product's image and Password.
type Redis struct{ *Container }

// StartRedis starts one and waits until it answers.
func StartRedis(t testing.TB) *Redis {
	t.Helper()
	r := &Redis{Run(t, Spec{
		Image: RedisImage(), Script: "exec redis-server --requirepass '" + Password + "' --appendonly yes --dir /tmp",
	})}
	r.Answers(t)
	return r
}

// Answers waits until it does.
func (r *Redis) Answers(t testing.TB) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		out, _ := r.Exec(t, r.command("PING")...)
		if strings.Contains(out, "PONG") {
			return
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("redis does not answer: %s", out)
		}
	}
}

// Command runs one of Redis's commands and returns what it answers.
func (r *Redis) Command(t testing.TB, command ...string) string {
	t.Helper()
	return strings.TrimSpace(r.MustExec(t, r.command(command...)...))
}

func (r *Redis) command(words ...string) []string {
	return append([]string{"redis-cli", "--no-auth-warning", "-a", Password}, words...)
}

// Address is where it listens.
func (r *Redis) Address() string { return r.IP + ":6379" }
