package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// An api is controld's, spoken to as a script would: by its documented fields.
type api struct {
	url, token string
	http       *http.Client
}

func newAPI(url, token string) api {
	return api{url: url, token: token, http: &http.Client{Timeout: time.Minute}}
}

// An operation is what the API tells of one, as far as it is needed here.
type operation struct {
	ID    string `json:"id"`
	Mode  string `json:"mode"`
	State string `json:"state"`
	Steps []struct {
		Name       string    `json:"name"`
		State      string    `json:"state"`
		StartedAt  time.Time `json:"started_at"`
		DurationMs float64   `json:"duration_ms"`
	} `json:"steps"`
	Result map[string]any `json:"result"`
}

// errRefused means that a precheck refused the operation: nothing was touched.
var errRefused = errors.New("refused")

// call returns the answer's status and body; answers of any status are no error.
func (a api) call(ctx context.Context, method, path string) (int, http.Header, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.url+path, nil)
	if err != nil {
		return 0, nil, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	res, err := a.http.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, res.Header, body, err
}

func (a api) get(ctx context.Context, path string, into any) error {
	status, _, body, err := a.call(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("GET %s: %d: %s", path, status, brief(body))
	}
	return json.Unmarshal(body, into)
}

// start posts to path, with an empty body, and returns the operation once it has ended
// well. It returns the time of the call too, also where that failed.
func (a api) start(ctx context.Context, path string) (operation, time.Time, error) {
	var op operation
	called := time.Now()
	status, header, body, err := a.call(ctx, http.MethodPost, path)
	if err != nil {
		return op, called, err
	}
	switch status {
	case http.StatusOK:
		err = json.Unmarshal(body, &op)
	case http.StatusAccepted:
		op, err = a.ended(ctx, header.Get("Location"))
	case http.StatusConflict:
		err = fmt.Errorf("POST %s: %w: %s", path, errRefused, brief(body))
	default:
		err = fmt.Errorf("POST %s: %d: %s", path, status, brief(body))
	}
	if err == nil && op.State != "succeeded" {
		err = fmt.Errorf("POST %s: operation %s is %s", path, op.ID, op.State)
	}
	return op, called, err
}

// ended waits for an operation that outlasted its call.
func (a api) ended(ctx context.Context, path string) (operation, error) {
	var op operation
	err := poll(ctx, 200*time.Millisecond, func(ctx context.Context) error {
		if err := a.get(ctx, path, &op); err != nil {
			return err
		}
		if op.State == "running" || op.State == "incomplete" {
			return fmt.Errorf("operation %s is %s", op.ID, op.State)
		}
		return nil
	})
	return op, err
}

func brief(body []byte) string {
	const limit = 1000
	text := strings.TrimSpace(string(body))
	return text[:min(limit, len(text))]
}

// duration reads one of the result's times, such as pause_ms; 0 where it is not told.
func (o operation) duration(name string) time.Duration {
	ms, _ := o.Result[name].(float64)
	return fromMillis(ms)
}

func fromMillis(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

// steps are those that were carried out.
func (o operation) steps() []step {
	var steps []step
	for _, s := range o.Steps {
		if s.State == "done" {
			steps = append(steps, step{s.Name, fromMillis(s.DurationMs)})
		}
	}
	return steps
}

// resumed is when the clients were let go, on the wall clock that the daemon and
// this program share; zero where no step says so.
func (o operation) resumed() time.Time {
	for _, s := range o.Steps {
		if s.State == "done" && strings.HasPrefix(s.Name, "resume") {
			return s.StartedAt.Add(fromMillis(s.DurationMs))
		}
	}
	return time.Time{}
}
