// Package docker reaches the containers of a cluster through the Docker
// engine, and their processes through the kernel where that is faster or the
// engine has no call for it. When to start or kill what is decided in package
// cluster; what runs in a container is the business of its init.
package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"

	"controld/internal/cluster"
)

// Config says which engine, and which of its networks is the cluster's.
type Config struct {
	Host    string // unix:///var/run/docker.sock when empty, or what DOCKER_HOST says
	Network string
	Log     *slog.Logger // the default logger when nil
}

// An Engine is one Docker engine.
type Engine struct {
	api     *client.Client
	network string
	log     *slog.Logger
	procs   processes
}

var _ cluster.Engine = (*Engine)(nil)

// New makes an Engine. It does not ask the engine anything yet; the version of
// its API is negotiated at the first call.
func New(cfg Config) (*Engine, error) {
	opts := []client.Opt{client.FromEnv, client.WithAPIVersionNegotiation()}
	if cfg.Host != "" {
		opts = append(opts, client.WithHost(cfg.Host))
	}
	api, err := client.NewClientWithOpts(opts...)
	if err != nil {
		return nil, fmt.Errorf("docker client: %w", err)
	}
	log := cfg.Log
	if log == nil {
		log = slog.Default()
	}
	return &Engine{api: api, network: cfg.Network, log: log, procs: processes{root: "/proc"}}, nil
}

// Close ends the connections to the engine.
func (e *Engine) Close() error { return e.api.Close() }

// Ping asks whether the engine answers, and which version of its API.
func (e *Engine) Ping(ctx context.Context) (apiVersion string, err error) {
	ping, err := e.api.Ping(ctx)
	if err != nil {
		return "", fmt.Errorf("docker engine: %w", err)
	}
	return ping.APIVersion, nil
}

// Inspect implements cluster.Engine.
func (e *Engine) Inspect(ctx context.Context, name string) (cluster.Container, error) {
	c, _, err := e.inspect(ctx, name)
	return c, err
}

// inspect also returns the container's id, by which its processes are known.
func (e *Engine) inspect(ctx context.Context, name string) (c cluster.Container, id string, err error) {
	found, err := e.api.ContainerInspect(ctx, name)
	if errdefs.IsNotFound(err) {
		return cluster.Container{}, "", nil
	}
	if err != nil {
		return cluster.Container{}, "", fmt.Errorf("inspect container %s: %w", name, err)
	}
	return e.container(found), found.ID, nil
}

func (e *Engine) container(found container.InspectResponse) cluster.Container {
	c := cluster.Container{Exists: true}
	if s := found.State; s != nil {
		c.Running, c.Paused = s.Running, s.Paused
		c.PID, c.ExitCode, c.Health = s.Pid, s.ExitCode, s.Status
		// A container that never ran has year 1 here, which is the zero time.
		c.StartedAt, _ = time.Parse(time.RFC3339Nano, s.StartedAt)
		c.EndedAt, _ = time.Parse(time.RFC3339Nano, s.FinishedAt)
	}
	if found.NetworkSettings != nil {
		if n := found.NetworkSettings.Networks[e.network]; n != nil {
			c.Connected, c.Address = true, n.IPAddress
		}
	}
	return c
}

// Throttled reads the kernel's count from the container's control group.
func (e *Engine) Throttled(ctx context.Context, name string) (time.Duration, error) {
	answer, err := e.api.ContainerStatsOneShot(ctx, name)
	if err != nil {
		return 0, fmt.Errorf("statistics of container %s: %w", name, err)
	}
	defer answer.Body.Close()
	var stats container.StatsResponse
	if err := json.NewDecoder(answer.Body).Decode(&stats); err != nil {
		return 0, fmt.Errorf("statistics of container %s: %w", name, err)
	}
	return time.Duration(stats.CPUStats.ThrottlingData.ThrottledTime), nil // nanoseconds
}

// Start starts the container; one that runs already is left as it is.
func (e *Engine) Start(ctx context.Context, name string) error {
	if err := e.api.ContainerStart(ctx, name, container.StartOptions{}); err != nil {
		return fmt.Errorf("start container %s: %w", name, err)
	}
	return nil
}

// Disconnect cuts the container from the cluster's network.
func (e *Engine) Disconnect(ctx context.Context, name string) error {
	const force = true
	err := e.api.NetworkDisconnect(ctx, e.network, name, force)
	return e.unlessConnected(ctx, false, name, "disconnect", err)
}

// Connect undoes a Disconnect. The container is found by its own name again,
// which is what the cluster uses; aliases are not restored.
func (e *Engine) Connect(ctx context.Context, name string) error {
	err := e.api.NetworkConnect(ctx, e.network, name, &network.EndpointSettings{})
	return e.unlessConnected(ctx, true, name, "connect", err)
}

// unlessConnected drops the error of a call that had nothing to do. The engine's error
// for that differs from version to version, so the container's state is asked instead.
func (e *Engine) unlessConnected(ctx context.Context, want bool, name, doing string, err error) error {
	if err == nil {
		return nil
	}
	if c, inspectErr := e.Inspect(ctx, name); inspectErr == nil && c.Exists && c.Connected == want {
		return nil
	}
	return fmt.Errorf("%s container %s, network %s: %w", doing, name, e.network, err)
}
