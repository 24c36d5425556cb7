package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"controld/internal/probe"
	"controld/internal/testcluster"
)

// healthLimit is the time within which /health must know of what has happened, where a fact says
// so. Silence proves nothing for 15 s: hangLimit.
const (
	healthLimit = 2 * time.Second
	hangLimit   = 25 * time.Second
)

// TestHealthOfAComponentThatIsGone kills each component, and freezes it. /health names it and the
// reason within two seconds, the checks for load balancers follow, and the observation goes on.
// All is well again once the component is back.
func TestHealthOfAComponentThatIsGone(t *testing.T) {
	c := up(t)
	primary, standby := c.roles()
	for _, tt := range []struct {
		service, component  string // as compose and as /health name it
		status              string // of the whole
		killed, frozen      string // reasons
		primaryOK, readerOK bool   // what /nodes/*/primary|replica say meanwhile
		back                func()
	}{
		{primary, primary, "down", "container-stopped", "container-paused", false, true,
			func() { c.run("/nodes/"+primary+"/start", nil) }},
		{standby, standby, "degraded", "container-stopped", "container-paused", true, false,
			func() {}}, // supervision brings it back
		{"pgbouncer", "pooler", "degraded", "container-stopped", "container-paused", true, true,
			func() { c.docker("start", c.Container("pgbouncer")) }},
		{"redis", "redis", "degraded", "redis-down", "redis-down", true, true,
			func() { c.docker("start", c.Container("redis")) }},
	} {
		name := c.Container(tt.service)
		told := func(t *testing.T, reason string) {
			t.Helper()
			took := c.healthSays(t, healthLimit, tt.status, tt.component, reason)
			c.nodeSays(t, primary, "primary", tt.primaryOK)
			c.nodeSays(t, standby, "replica", tt.readerOK)
			c.nodeSays(t, standby, "primary", false)
			c.nodeSays(t, primary, "replica", false)
			t.Logf("/health said so after %s", took.Round(time.Millisecond))
		}
		t.Run(tt.component+" killed", func(t *testing.T) {
			c.docker("kill", "-s", "KILL", name)
			told(t, tt.killed)
			tt.back()
			c.waitOK(settleLimit)
		})
		t.Run(tt.component+" frozen", func(t *testing.T) {
			c.freeze(tt.service)
			told(t, tt.frozen)
			c.keepsLooking(t)
			c.docker("unpause", name)
			c.waitOK(settleLimit)
		})
		c.nodeSays(t, primary, "primary", true)
		c.nodeSays(t, standby, "replica", true)
	}
	t.Run("postmaster hangs", func(t *testing.T) { postmasterHangs(t, c) })
}

// postmasterHangs: the container runs, and a login never ends.
func postmasterHangs(t *testing.T, c *cluster) {
	primary, _ := c.roles()
	c.signalPostgres(primary, "STOP")
	c.healthSays(t, hangLimit, "down", primary, "not-answering")
	c.keepsLooking(t)
	c.nodeSays(t, primary, "primary", false)
	c.signalPostgres(primary, "CONT")
	c.waitOK(settleLimit)
	c.nodeSays(t, primary, "primary", true)
}

// signalPostgres sends a signal to every process of a node's server.
func (c *cluster) signalPostgres(node, sig string) {
	c.t.Helper()
	c.docker("exec", c.Container(node), "sh", "-c",
		`for p in /proc/[0-9]*; do if [ "$(cat $p/comm)" = postgres ]; then kill -`+sig+` ${p#/proc/}; fi; done
		true # some have ended meanwhile`)
}

// healthSays waits until /health has this status and this reason for component.
func (c *cluster) healthSays(t *testing.T, limit time.Duration, status, component, reason string) time.Duration {
	t.Helper()
	began := time.Now()
	var last error
	err := testcluster.Poll(t.Context(), limit, 10*time.Millisecond, func(ctx context.Context) error {
		a, err := c.Call(ctx, "", "GET", "/health", nil)
		if err != nil {
			return err
		}
		last = fmt.Errorf("/health: %d %s", a.Status, a.Body)
		h := a.JSON()
		components, _ := h["components"].([]any)
		for _, one := range components {
			got, _ := one.(map[string]any)
			if got["name"] == component && got["reason"] == reason && h["status"] == status && got["detail"] != "" && got["do"] != "" {
				return nil
			}
		}
		return last
	})
	if err != nil {
		t.Errorf("/health does not say %s, %s of %s within %s: %v", status, reason, component, limit, last)
	}
	return time.Since(began)
}

// nodeSays holds the answer of a check for load balancers, which may follow a
// moment later than /health.
func (c *cluster) nodeSays(t *testing.T, node, check string, ok bool) {
	t.Helper()
	want := map[bool]int{true: 200, false: 503}[ok]
	err := testcluster.Poll(t.Context(), healthLimit, 20*time.Millisecond, func(ctx context.Context) error {
		a, err := c.Call(ctx, "", "GET", "/nodes/"+node+"/"+check, nil)
		if err == nil && a.Status != want {
			err = fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return err
	})
	if err != nil {
		t.Errorf("/nodes/%s/%s, want %d: %v", node, check, want, err)
	}
}

// keepsLooking expects that a component that does not answer holds nothing up:
// controld looks again and again.
func (c *cluster) keepsLooking(t *testing.T) {
	t.Helper()
	seen := map[string]bool{}
	err := testcluster.Poll(t.Context(), 10*time.Second, 50*time.Millisecond, func(ctx context.Context) error {
		a, err := c.Call(ctx, "", "GET", "/health", nil)
		if err != nil {
			return err
		}
		seen[fmt.Sprint(a.JSON()["observed_at"])] = true
		if len(seen) < 4 {
			return errors.New("observed_at stands still")
		}
		return nil
	})
	if err != nil {
		t.Errorf("%d observations: %v", len(seen), err)
	}
}

// TestJournalFull fills the disk under controld's journal: a failover is refused
// before it touches anything, and one that finds the disk full in its pause ends
// in order. The next one after room was made succeeds.
func TestJournalFull(t *testing.T) {
	t.Parallel()
	c := upFailpoint(t)
	c.smallJournal(t)
	w := c.writers(probe.Config{})
	defer w.Stop()

	c.fillJournal(t)
	c.exhaustJournal(t)
	orders := c.orders(t)
	a := c.call("admin", "POST", "/failover", nil)
	if a.Status < 400 || !strings.Contains(string(a.Body), "no space left on device") {
		t.Errorf("POST /failover: %d %s, want it refused for the full disk", a.Status, a.Body)
	}
	if now := c.orders(t); now != orders {
		t.Errorf("orders %s, were %s", now, orders)
	}
	if err := c.inOrder(t.Context()); err != nil {
		t.Errorf("not as before: %v", err)
	}
	if s := w.Stop().All(); s.Failed > 0 {
		t.Errorf("%d transactions failed", s.Failed)
	}

	// With a little more room each time, the failover comes a little further. It is more
	// each time because what was refused before is journalled meanwhile, and takes of it.
	for pages := 1; a.Status != 200; pages++ {
		if pages > 20 {
			t.Fatalf("POST /failover: %d %s, with room for %d pages", a.Status, a.Body, pages)
		}
		w := c.writers(probe.Config{})
		defer w.Stop()
		c.docker("exec", c.Container("controld"), "truncate", "-s", fmt.Sprint(-4096*pages), "/var/lib/controld/fill")
		a = c.call("admin", "POST", "/failover", nil)
		t.Logf("room for %d pages: %d %v %v", pages, a.Status, a.JSON()["type"], a.JSON()["detail"])
		if a.Status != 409 {
			if detail := fmt.Sprint(a.JSON()["detail"]); a.Status != 200 && !strings.HasPrefix(detail, "reserve slot: ") {
				// The failover got past its beginning. What is left to mend is an operation
				// too, and needs room as well.
				c.docker("exec", c.Container("controld"), "rm", "/var/lib/controld/fill")
				c.settle(t)
				verdict(t, c, w)
				c.run("/failover", nil)
				return
			}
			c.settle(t)
			verdict(t, c, w)
		}
		w.Stop()
	}
}

// smallJournal puts controld's journal on a disk of its own, which can be filled.
// What it knew of the cluster is lost with the old one, and it adopts it.
func (c *cluster) smallJournal(t *testing.T) {
	t.Helper()
	name := c.Container("controld")
	var found []struct {
		Config struct {
			Image  string
			Env    []string
			Labels map[string]string
		}
		HostConfig struct {
			PortBindings map[string][]struct{ HostIP, HostPort string }
		}
		Mounts []struct {
			Type, Name, Source, Destination string
			RW                              bool
		}
	}
	if err := json.Unmarshal([]byte(c.docker("inspect", name)), &found); err != nil {
		t.Fatal(err)
	}
	old := found[0]
	args := []string{
		"run", "-d", "--name", name, "--network", c.Container("controld"), "--pid", "host",
		"--cap-drop", "ALL", "--cap-add", "KILL", "--cap-add", "DAC_READ_SEARCH",
		"--label", "controld.cluster=" + old.Config.Labels["controld.cluster"],
		"--tmpfs", "/var/lib/controld:size=1m",
	}
	for _, e := range old.Config.Env {
		args = append(args, "-e", e)
	}
	for _, m := range old.Mounts {
		if m.Destination == "/var/lib/controld" {
			continue
		}
		mount := m.Source
		if m.Type == "volume" {
			mount = m.Name
		}
		mount += ":" + m.Destination
		if !m.RW {
			mount += ":ro"
		}
		args = append(args, "-v", mount)
	}
	for port, hosts := range old.HostConfig.PortBindings {
		for _, h := range hosts {
			args = append(args, "-p", h.HostIP+":"+h.HostPort+":"+port)
		}
	}
	c.docker("stop", name)
	c.docker("rm", name)
	c.docker(append(args, old.Config.Image)...)
	c.settle(t)
}

// fillJournal leaves no room on the journal's disk.
func (c *cluster) fillJournal(t *testing.T) {
	t.Helper()
	c.docker("exec", c.Container("controld"), "sh", "-c", "cat /dev/zero >/var/lib/controld/fill 2>/dev/null; true")
}

// exhaustJournal asks for what is refused until the pages that the journal has
// free inside are used up as well.
func (c *cluster) exhaustJournal(t *testing.T) {
	t.Helper()
	for range 300 {
		c.call("admin", "POST", "/failover", map[string]any{"expected_primary": testcluster.Nodes[1]})
		if strings.Contains(c.docker("logs", "--tail", "20", c.Container("controld")), "journal refused") {
			return
		}
	}
	t.Fatal("the journal still finds room")
}

// orders are those of both nodes, as they stand on the volumes.
func (c *cluster) orders(t *testing.T) string {
	t.Helper()
	return c.docker("exec", c.Container("controld"), "sh", "-c",
		"cat /orders/node1/order.json /orders/node2/order.json /orders/*/role.conf")
}
