package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/go-connections/nat"
)

var containerIDForm = regexp.MustCompile(`/([0-9a-f]{64})/`)

// Self is the id of the container that this process runs in; empty outside of
// one. The name of the host would not do: compose sets it, and anybody can.
func (e *Engine) Self() string {
	mounts, err := os.ReadFile(filepath.Join(e.procs.root, "self", "mountinfo"))
	if err != nil {
		return "" // no Linux: no container
	}
	return containerID(string(mounts))
}

// containerID reads the id off the file that the engine mounts at
// /etc/hostname: it lies in a folder of the container's own.
func containerID(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line) // proc(5): the 4th is the path in its file system, the 5th where it is mounted
		if len(fields) < 5 || fields[4] != "/etc/hostname" {
			continue
		}
		if m := containerIDForm.FindStringSubmatch(fields[3]); m != nil {
			return m[1]
		}
	}
	return ""
}

// Gateways are the addresses that a caller on the engine's own machine has for the
// container: the machine's addresses on the bridges that the container hangs on. A
// container on the machine's own network has none.
//
// They prove where a caller is only while nobody else comes by them. So it is an error,
// which says what is in the way, where the port is published on more than a loopback
// address, or where a network's gateway can be another machine.
func (e *Engine) Gateways(ctx context.Context, id, port string) ([]netip.Addr, error) {
	found, err := e.api.ContainerInspect(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("inspect controld's own container: %w", err)
	}
	if found.HostConfig != nil && found.HostConfig.NetworkMode.IsHost() {
		return nil, nil
	}
	networks := map[string]network.Inspect{}
	if found.NetworkSettings != nil {
		for name, endpoint := range found.NetworkSettings.Networks {
			networks[name], err = e.api.NetworkInspect(ctx, endpoint.NetworkID, network.InspectOptions{})
			if err != nil {
				return nil, fmt.Errorf("inspect network %s: %w", name, err)
			}
		}
	}
	return gateways(found, networks, port)
}

// gateways decides what Gateways returns.
func gateways(found container.InspectResponse, networks map[string]network.Inspect, port string) ([]netip.Addr, error) {
	if found.NetworkSettings == nil {
		return nil, fmt.Errorf("the engine does not say how port %s is published", port)
	}
	bindings := found.NetworkSettings.Ports[nat.Port(port+"/tcp")]
	if len(bindings) == 0 {
		return nil, fmt.Errorf("the container's port %s is not published on 127.0.0.1", port)
	}
	for _, b := range bindings {
		if at, err := netip.ParseAddr(b.HostIP); err != nil || !at.Unmap().IsLoopback() {
			return nil, fmt.Errorf("the container's port %s is published on %q and not on 127.0.0.1 alone", port, b.HostIP)
		}
	}
	var all []netip.Addr
	for _, name := range slices.Sorted(maps.Keys(found.NetworkSettings.Networks)) {
		endpoint := found.NetworkSettings.Networks[name]
		if err := leadsToHost(networks[name]); err != nil {
			return nil, fmt.Errorf("network %s: %w", name, err)
		}
		for _, text := range []string{endpoint.Gateway, endpoint.IPv6Gateway} {
			// A link-local address can be in use on every link.
			if at, err := netip.ParseAddr(text); err == nil && !at.IsLinkLocalUnicast() && !at.IsUnspecified() {
				all = append(all, at.Unmap())
			}
		}
	}
	return all, nil
}

// leadsToHost reports why a network's gateway could be another machine than the
// engine's own.
func leadsToHost(n network.Inspect) error {
	if n.Driver != "bridge" {
		return fmt.Errorf("its driver is %q; only a bridge's gateway is this machine for certain", n.Driver)
	}
	if n.Options["com.docker.network.bridge.inhibit_ipv4"] == "true" {
		return errors.New("the bridge has no address of this machine (option inhibit_ipv4)")
	}
	for _, c := range n.IPAM.Config {
		for name := range c.AuxAddress {
			if strings.HasPrefix(name, "DefaultGateway") {
				return fmt.Errorf("its gateway is set to an address of somebody else (%s)", name)
			}
		}
	}
	return nil
}
