package redis

import (
	"strings"
	"testing"
	"time"

	"controld/internal/health"
)

func TestAssess(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name   string
		seen   health.Part
		status health.Status
		reason string
		do     string // a part of what to do
	}{
		{"answers", health.Part{SeenAt: now, OK: true}, health.OK, "", ""},
		{"answered just within the limit", health.Part{SeenAt: now.Add(-3 * time.Second), OK: true}, health.OK, "", ""},
		{"is down", health.Part{SeenAt: now, Detail: "refused"}, health.Down, "redis-down", "docker start redis"},
		{"was never seen", health.Part{}, health.Degraded, "redis-unknown", "log"},
		{"was seen long ago", health.Part{SeenAt: now.Add(-4 * time.Second), OK: true}, health.Degraded, "redis-unknown", "log"},
	} {
		c := assess(tt.seen, now, 3*time.Second)
		if c.Name != "redis" || c.Status != tt.status || c.Reason != tt.reason || !strings.Contains(c.Do, tt.do) {
			t.Errorf("%s: %+v", tt.name, c)
		}
		if tt.status != health.OK && c.Detail == "" {
			t.Errorf("%s: no detail", tt.name)
		}
	}
}
