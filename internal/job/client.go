package job

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// A Client asks one init.
type Client struct {
	http *http.Client
}

// NewClient returns a client of the init that listens on the unix socket at path.
func NewClient(path string) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		MaxIdleConns: 4, IdleConnTimeout: 30 * time.Second,
	}}}
}

// Close gives back what the client holds open.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Start starts a job; one that has this identity and is the same is no error. ErrOther
// where it is another one.
func (c *Client) Start(ctx context.Context, id string, spec Spec) (Status, error) {
	return c.ask(ctx, http.MethodPut, id, "", spec)
}

// Status is that of a job, with what it said when it has ended. ErrUnknown where the init
// knows none such.
func (c *Client) Status(ctx context.Context, id string) (Status, error) {
	return c.ask(ctx, http.MethodGet, id, "", nil)
}

// Wait waits until the job has ended, or ctx.
func (c *Client) Wait(ctx context.Context, id string) (Status, error) {
	return c.ask(ctx, http.MethodGet, id, "?wait=true", nil)
}

// End kills the job with every process of it, and forgets it. It returns when nothing of
// it is left. One that is not known is no error: it does not run.
func (c *Client) End(ctx context.Context, id string) error {
	_, err := c.ask(ctx, http.MethodDelete, id, "", nil)
	if errors.Is(err, ErrUnknown) {
		return nil
	}
	return err
}

// List are all jobs that the init knows, without what they said.
func (c *Client) List(ctx context.Context) ([]Status, error) {
	var all []Status
	err := c.call(ctx, http.MethodGet, "/jobs", nil, &all)
	return all, err
}

// Run starts a job, waits for its end and forgets it. When ctx ends first, so does the job.
func (c *Client) Run(ctx context.Context, id string, spec Spec) (Status, error) {
	s, err := c.Start(ctx, id, spec)
	if err == nil {
		s, err = c.Wait(ctx, id)
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	return s, errors.Join(err, c.End(clean, id))
}

// endTimeout bounds the end of a job whose caller has gone.
const endTimeout = 10 * time.Second

func (c *Client) ask(ctx context.Context, method, id, query string, body any) (s Status, err error) {
	if err := CheckID(id); err != nil {
		return Status{}, err
	}
	err = c.call(ctx, method, "/jobs/"+url.PathEscape(id)+query, body, &s)
	if err != nil {
		return Status{}, fmt.Errorf("job %s: %w", id, err)
	}
	return s, nil
}

func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://init"+path, content)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: %w", ErrAway, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNoContent:
		return nil
	case http.StatusNotFound:
		return ErrUnknown
	case http.StatusConflict:
		return ErrOther
	default:
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // as much as has come
		return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(said))
	}
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: its answer was cut: %w", ErrAway, err)
	}
	return nil
}
