// Package client calls controld's HTTP API for the commands: the token, the
// waiting, and errors that a person can act on. The calls themselves are
// generated from openapi.yaml, in package gen.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"controld/internal/api/gen"
)

// A Client calls one controld.
type Client struct {
	base string
	api  *gen.Client
}

// How long calls may take. Work is started without waiting for its end.
const (
	readTimeout  = 15 * time.Second
	startTimeout = 70 * time.Second // the daemon checks first; a frozen primary takes its time
)

// New makes a client for the daemon at base. An empty token sends none.
func New(base, token string) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%q is no address of an API; it looks like http://127.0.0.1:8088", base)
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
		IdleConnTimeout:     time.Minute,
	}
	api, err := gen.NewClient(base, gen.WithHTTPClient(&http.Client{Transport: transport}),
		gen.WithRequestEditorFn(func(_ context.Context, req *http.Request) error {
			if token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", base, err)
	}
	return &Client{base: base, api: api}, nil
}

// A Problem is what the daemon answered instead of what was asked for.
type Problem struct{ gen.Problem }

func (p *Problem) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n  type: %s", p.Detail, p.Type)
	if p.Cause != nil {
		fmt.Fprintf(&b, ", caused by %s", *p.Cause)
	}
	if p.Allowed != nil && !strings.Contains(p.Detail, *p.Allowed) {
		fmt.Fprintf(&b, "\n  allowed: %s", *p.Allowed)
	}
	if p.Numbers != nil {
		b.WriteString("\n  " + Numbers(*p.Numbers))
	}
	if p.Operation != nil {
		fmt.Fprintf(&b, "\n  operation: %s", p.Operation.ID)
	}
	if p.Status >= http.StatusInternalServerError && p.RequestID != nil {
		fmt.Fprintf(&b, "\n  request: %s", *p.RequestID)
	}
	return b.String()
}

// Numbers writes named numbers in a line, sorted.
func Numbers(n map[string]any) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(n)) {
		v := n[name]
		if f, ok := v.(float64); ok {
			v = json.Number(strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", f), "0"), "."))
		}
		parts = append(parts, fmt.Sprintf("%s=%v", name, v))
	}
	return strings.Join(parts, " ")
}

// Unreachable means that no answer came.
type Unreachable struct {
	Base string
	Err  error
}

func (e *Unreachable) Error() string {
	reason := e.Err.Error()
	var call *url.Error
	if errors.As(e.Err, &call) {
		reason = call.Err.Error()
	}
	if errors.Is(e.Err, context.DeadlineExceeded) {
		reason = "no answer in time"
	}
	return fmt.Sprintf("controld at %s does not answer: %s\n  Is it running (make up)? Is CONTROLD_URL right (make env)?", e.Base, reason)
}

func (e *Unreachable) Unwrap() error { return e.Err }

// ErrLeft means that the caller gave up before an answer came: its context has
// ended. The daemon may have begun what it was asked for.
var ErrLeft = errors.New("interrupted")

// ask makes one call and decodes its answer into a T. Statuses beside 2xx that
// carry a T too, such as the 503 of a health check, are named in also.
func ask[T any](
	ctx context.Context, c *Client, timeout time.Duration,
	call func(context.Context) (*http.Response, error), also ...int,
) (T, error) {
	var out T
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := call(bounded)
	if err != nil {
		return out, c.noAnswer(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return out, c.noAnswer(ctx, err)
	}
	carries := resp.StatusCode/100 == 2 || slices.Contains(also, resp.StatusCode) && isJSON(resp)
	if !carries {
		return out, problem(c, resp, body)
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return out, fmt.Errorf("%s does not answer as controld does: %w", c.base, err)
	}
	return out, nil
}

// noAnswer tells a daemon that does not answer from a caller that left.
func (c *Client) noAnswer(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ErrLeft
	}
	return &Unreachable{Base: c.base, Err: err}
}

func isJSON(resp *http.Response) bool {
	return strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json")
}

func problem(c *Client, resp *http.Response, body []byte) error {
	var p Problem
	if err := json.Unmarshal(body, &p.Problem); err == nil && p.Type != "" {
		return &p
	}
	text := bytes.TrimSpace(body)
	return fmt.Errorf("%s does not answer as controld does: %s %q", c.base, resp.Status, text[:min(len(text), 200)])
}

// Health is what GET /health says, also when it is down.
func (c *Client) Health(ctx context.Context) (gen.Health, error) {
	return ask[gen.Health](ctx, c, readTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.GetHealth(ctx)
	}, http.StatusServiceUnavailable)
}

// Ready is what GET /health/ready says.
func (c *Client) Ready(ctx context.Context) (gen.Probe, error) {
	return ask[gen.Probe](ctx, c, readTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.GetReady(ctx)
	}, http.StatusServiceUnavailable)
}

// Cluster is the topology.
func (c *Client) Cluster(ctx context.Context) (gen.Cluster, error) {
	return ask[gen.Cluster](ctx, c, readTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.GetCluster(ctx)
	})
}

// Operations is one page of the audit.
func (c *Client) Operations(ctx context.Context, p gen.ListOperationsParams) (gen.OperationList, error) {
	return ask[gen.OperationList](ctx, c, readTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.ListOperations(ctx, &p)
	})
}

// Operation is one operation as it stands.
func (c *Client) Operation(ctx context.Context, id string) (gen.Operation, error) {
	return ask[gen.Operation](ctx, c, readTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.GetOperation(ctx, id)
	})
}

// Cancel asks an operation to stop and undo.
func (c *Client) Cancel(ctx context.Context, id string) (gen.Operation, error) {
	return ask[gen.Operation](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.CancelOperation(ctx, id)
	})
}

// async: work is followed by its events and not by a long request.
var async = func() *string { s := "respond-async"; return &s }()

// Failover starts a failover and returns it as it runs.
func (c *Client) Failover(ctx context.Context, r gen.FailoverRequest, key string) (gen.Operation, error) {
	return ask[gen.Operation](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.StartFailover(ctx, &gen.StartFailoverParams{Prefer: async, IdempotencyKey: keyed(key)}, r)
	})
}

// PlanFailover is the dry run of Failover.
func (c *Client) PlanFailover(ctx context.Context, r gen.FailoverRequest) (gen.Plan, error) {
	yes := true
	r.DryRun = &yes
	return ask[gen.Plan](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.StartFailover(ctx, &gen.StartFailoverParams{}, r)
	})
}

// Failback starts a failback and returns it as it runs.
func (c *Client) Failback(ctx context.Context, r gen.FailbackRequest, key string) (gen.Operation, error) {
	return ask[gen.Operation](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.StartFailback(ctx, &gen.StartFailbackParams{Prefer: async, IdempotencyKey: keyed(key)}, r)
	})
}

// PlanFailback is the dry run of Failback.
func (c *Client) PlanFailback(ctx context.Context, r gen.FailbackRequest) (gen.Plan, error) {
	yes := true
	r.DryRun = &yes
	return ask[gen.Plan](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.StartFailback(ctx, &gen.StartFailbackParams{}, r)
	})
}

// Backups is one page of the backups, newest first.
func (c *Client) Backups(ctx context.Context, p gen.ListBackupsParams) (gen.BackupList, error) {
	return ask[gen.BackupList](ctx, c, readTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.ListBackups(ctx, &p)
	})
}

// Cycle is the cycle of backups, and where it stands.
func (c *Client) Cycle(ctx context.Context) (gen.Cycle, error) {
	return ask[gen.Cycle](ctx, c, readTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.GetCycle(ctx)
	})
}

// Backup is one backup, by its key or label.
func (c *Client) Backup(ctx context.Context, key string) (gen.Backup, error) {
	return ask[gen.Backup](ctx, c, readTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.GetBackup(ctx, key)
	})
}

// StartBackup makes a backup.
func (c *Client) StartBackup(ctx context.Context, r gen.BackupRequest, key string) (gen.Operation, error) {
	return ask[gen.Operation](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.StartBackup(ctx, &gen.StartBackupParams{Prefer: async, IdempotencyKey: keyed(key)}, r)
	})
}

// StartDay makes the backups of a day of the cycle.
func (c *Client) StartDay(ctx context.Context, day int, r gen.DayRequest, key string) (gen.Operation, error) {
	return ask[gen.Operation](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.StartDay(ctx, day, &gen.StartDayParams{Prefer: async, IdempotencyKey: keyed(key)}, r)
	})
}

// DeleteBackup removes a backup, by its key or label.
func (c *Client) DeleteBackup(ctx context.Context, name string, p gen.DeleteBackupParams, key string) (gen.Operation, error) {
	p.Prefer, p.IdempotencyKey = async, keyed(key)
	return ask[gen.Operation](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.DeleteBackup(ctx, name, &p)
	})
}

// PlanDeleteBackup is what DeleteBackup would remove.
func (c *Client) PlanDeleteBackup(ctx context.Context, name string, p gen.DeleteBackupParams) (gen.RetentionPlan, error) {
	yes := true
	p.DryRun = &yes
	return ask[gen.RetentionPlan](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.DeleteBackup(ctx, name, &p)
	})
}

// ApplyRetention removes the backups that are not kept.
func (c *Client) ApplyRetention(ctx context.Context, r gen.RetentionRequest, key string) (gen.Operation, error) {
	return ask[gen.Operation](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.ApplyRetention(ctx, &gen.ApplyRetentionParams{Prefer: async, IdempotencyKey: keyed(key)}, r)
	})
}

// PlanRetention is what ApplyRetention would remove.
func (c *Client) PlanRetention(ctx context.Context, r gen.RetentionRequest) (gen.RetentionPlan, error) {
	yes := true
	r.DryRun = &yes
	return ask[gen.RetentionPlan](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.ApplyRetention(ctx, &gen.ApplyRetentionParams{}, r)
	})
}

// BackupUsage is what the backups take.
func (c *Client) BackupUsage(ctx context.Context) (gen.BackupUsage, error) {
	return ask[gen.BackupUsage](ctx, c, readTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.BackupUsage(ctx)
	})
}

// Orphans removes records of the catalogue that tell of no backup here, or lists them.
func (c *Client) Orphans(ctx context.Context, r gen.OrphansRequest) (gen.Orphans, error) {
	return ask[gen.Orphans](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.RemoveOrphans(ctx, r)
	})
}

// StartNode starts a node in its recorded role.
func (c *Client) StartNode(ctx context.Context, name string, r gen.StartRequest, key string) (gen.Operation, error) {
	return ask[gen.Operation](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.StartNode(ctx, name, &gen.StartNodeParams{Prefer: async, IdempotencyKey: keyed(key)}, r)
	})
}

// Rejoin makes a node a standby again.
func (c *Client) Rejoin(ctx context.Context, name string, r gen.RejoinRequest, key string) (gen.Operation, error) {
	return ask[gen.Operation](ctx, c, startTimeout, func(ctx context.Context) (*http.Response, error) {
		return c.api.RejoinNode(ctx, name, &gen.RejoinNodeParams{Prefer: async, IdempotencyKey: keyed(key)}, r)
	})
}

func keyed(key string) *string {
	if key == "" {
		return nil
	}
	return &key
}

// How often a stream that broke off is taken up again, and after what pause.
const (
	followAttempts = 60
	followPause    = 500 * time.Millisecond
)

// Follow calls seen with the operation at every change until done says so of
// it, and returns it. A stream that breaks off, as when the daemon restarts,
// is taken up again: it begins with the operation as it stands. When ctx ends
// before, the error is ErrLeft.
func (c *Client) Follow(ctx context.Context, id string, done func(gen.Operation) bool, seen func(gen.Operation)) (gen.Operation, error) {
	var last gen.Operation
	var err error
	for attempt := 0; attempt < followAttempts; attempt++ {
		var finished, progress bool
		finished, err = c.stream(ctx, id, func(op gen.Operation) bool {
			last, progress = op, true
			seen(op)
			return done(op)
		})
		var refused *Problem
		switch {
		case finished:
			return last, nil
		case ctx.Err() != nil:
			return last, ErrLeft
		case errors.As(err, &refused) && refused.Status < http.StatusInternalServerError:
			return last, err
		}
		if progress {
			attempt = 0
		}
		select {
		case <-ctx.Done():
			return last, ErrLeft
		case <-time.After(followPause):
		}
	}
	if err == nil {
		err = &Unreachable{Base: c.base, Err: errors.New("the stream of events breaks off")}
	}
	return last, err
}

// stream reads events until done; false when the stream ended before.
func (c *Client) stream(ctx context.Context, id string, done func(gen.Operation) bool) (bool, error) {
	resp, err := c.api.FollowOperation(ctx, id)
	if err != nil {
		return false, &Unreachable{Base: c.base, Err: err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return false, &Unreachable{Base: c.base, Err: err}
		}
		return false, problem(c, resp, body)
	}
	var last gen.Operation
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var ev gen.OperationEvent
		if err := json.Unmarshal([]byte(data), &ev); err != nil {
			return false, fmt.Errorf("%s sends events that are none of controld's: %w", c.base, err)
		}
		if ev.Operation != nil {
			last = *ev.Operation
		} else {
			last.Progress = ev.Progress // an event of progress carries no more
		}
		if done(last) {
			return true, nil
		}
	}
	if err := lines.Err(); err != nil {
		return false, &Unreachable{Base: c.base, Err: err}
	}
	return false, nil
}
