// Package api serves the HTTP API that openapi.yaml describes: routes and who
// may call them, validation, problem+json, tokens, the event stream and the
// embedded pages. What the calls do is behind the interfaces in outside.go;
// generated code is in package gen.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"controld"
	"controld/internal/api/command"
	"controld/internal/cluster"
)

// Options are what a Server is made of.
type Options struct {
	Cluster    Cluster
	Operations Operations
	Tokens     Tokens
	// Anonymous is the role of callers on this machine that send no token;
	// empty: they have none.
	Anonymous Role
	// Gateways are the addresses from which callers on this machine reach the
	// container that controld runs in; the error says why that is not certain.
	// nil: it runs in none.
	Gateways func(context.Context) ([]netip.Addr, error)
	// Capabilities are the commands that are served from packages of their own.
	Capabilities []command.Set
	Metrics      http.Handler   // GET /metrics
	Nodes        []cluster.Node // as configured, known before the first observation
	Interval     time.Duration  // of the observation: three of it make it stale
	Version      string
	Log          *slog.Logger
	// WaitLimit is how long a request waits for its operation; 0: 50 s.
	WaitLimit time.Duration
	// Heartbeat is the pause between comments in a quiet event stream; 0: 15 s.
	Heartbeat time.Duration
}

// A Server is the HTTP API.
type Server struct {
	cluster       Cluster
	operations    Operations
	tokens        Tokens
	anonymousRole Role
	machine       *machine
	nodes         []cluster.Node
	interval      time.Duration
	version       string
	log           *slog.Logger
	waitLimit     time.Duration
	heartbeat     time.Duration
	commands      commandList
	handler       http.Handler

	stopOnce sync.Once
	stopping chan struct{} // closed when streams must end
}

// New makes the API. It fails only when the contract and the routes disagree.
func New(o Options) (*Server, error) {
	s := &Server{
		cluster: o.Cluster, operations: o.Operations, tokens: o.Tokens, nodes: o.Nodes,
		interval: o.Interval, version: o.Version, log: o.Log,
		anonymousRole: o.Anonymous, machine: &machine{gateways: o.Gateways, log: o.Log},
		waitLimit: o.WaitLimit, heartbeat: o.Heartbeat,
		stopping: make(chan struct{}),
	}
	if s.waitLimit == 0 {
		s.waitLimit = 50 * time.Second
	}
	if s.heartbeat == 0 {
		s.heartbeat = 15 * time.Second
	}
	spec, err := loadSpec(controld.OpenAPI)
	if err != nil {
		return nil, err
	}
	metrics := o.Metrics
	if metrics == nil {
		metrics = http.NotFoundHandler()
	}
	routes := append(s.routes(metrics), s.capabilityRoutes(spec, o.Capabilities)...)
	if s.handler, err = s.router(spec, routes); err != nil {
		return nil, err
	}
	return s, nil
}

// LearnGateways asks for the gateways before the first caller needs them, so that
// the log says at the start whom the anonymous role is for.
func (s *Server) LearnGateways(ctx context.Context) {
	if s.anonymousRole != "" && s.machine.gateways != nil {
		_, _ = s.machine.learn(ctx) // logged; it is asked again when somebody calls
	}
}

// Handler serves the API.
func (s *Server) Handler() http.Handler { return s.handler }

// StopStreams ends the event streams and makes /health/ready say no. Requests
// that wait for an operation go on: whoever stops the operations ends them.
func (s *Server) StopStreams() { s.stopOnce.Do(func() { close(s.stopping) }) }

// Serve answers on ln until ctx ends, then lets the requests under way finish,
// for grace at the most.
func (s *Server) Serve(ctx context.Context, ln net.Listener, grace time.Duration) error {
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// Neither ReadTimeout nor WriteTimeout: boundTimes and the streams set deadlines.
	}
	var failure error
	served := make(chan struct{})
	go func() {
		defer close(served)
		failure = srv.Serve(ln)
	}()
	select {
	case <-served:
		return fmt.Errorf("serve the API on %s: %w", ln.Addr(), failure)
	case <-ctx.Done():
	}
	s.StopStreams()
	graceCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := srv.Shutdown(graceCtx)
	if err != nil {
		err = errors.Join(fmt.Errorf("requests were cut off at the stop: %w", err), srv.Close())
	}
	<-served
	return err
}
