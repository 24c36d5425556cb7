// Package testcluster brings up clusters of its own for tests and benchmarks,
// by the scripts that users run, under a random prefix, on free ports and a
// free subnet, and removes them. What is done with a cluster is the caller's.
package testcluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Cluster is one cluster, up or down.
type Cluster struct {
	Prefix string
	Root   string   // of the repository
	Env    []string // what the scripts are run with

	// Filled by Up.
	URL         string
	Token       map[string]string // by role: viewer, operator, admin
	DatabaseURL string            // the application's role, through PgBouncer
	DatabaseRO  string
	RedisURL    string
	password    map[string]string // by secret's file name
	secretsDir  string
	published   map[string]string
	volumes     string // the engine's folder of volumes
}

// Nodes are the API's names of the nodes.
var Nodes = []string{"postgres_master", "postgres_slave"}

// ModuleRoot is the nearest directory with a go.mod, from the working directory up: a test
// runs in its package's, make in this one.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("run it inside the repository: go.mod is not found")
		}
		dir = parent
	}
}

// New makes a cluster that is not up yet. tag names the images; settings are
// further CONTROLD_NAME=value.
func New(ctx context.Context, tag string, settings ...string) (*Cluster, error) {
	root, err := ModuleRoot()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Prefix: "t" + randomHex() + "-", Root: root, published: map[string]string{}}
	ports, err := FreePorts(ctx, 5)
	if err != nil {
		return nil, err
	}
	subnet, err := FreeSubnet()
	if err != nil {
		return nil, err
	}
	// Nothing of a cluster that the caller's own shell is set up for, whose
	// secrets would go with this one.
	c.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "CONTROLD_") })
	c.Env = append(c.Env, "CONTROLD_PREFIX="+c.Prefix, "CONTROLD_TAG="+tag, "CONTROLD_SUBNET="+subnet)
	for i, name := range []string{"NODE1", "NODE2", "POOLER", "REDIS", "API"} {
		c.published[name] = ports[i]
		c.Env = append(c.Env, "CONTROLD_PORT_"+name+"="+ports[i])
	}
	c.Env = append(c.Env, settings...)
	c.secretsDir = filepath.Join(c.Root, ".controld", "secrets-"+c.Prefix)
	return c, nil
}

func randomHex() string {
	b := make([]byte, 3)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// Up starts the cluster and waits until it is healthy.
func (c *Cluster) Up(ctx context.Context) error {
	if err := c.Script(ctx, "up.sh"); err != nil {
		return err
	}
	if err := c.load(); err != nil {
		return err
	}
	volume := c.dataVolume(Nodes[0])
	mountpoint, err := c.Docker(ctx, "volume", "inspect", "-f", "{{.Mountpoint}}", volume)
	c.volumes = strings.TrimSuffix(mountpoint, filepath.Join(volume, "_data"))
	return err
}

// dataVolume is the engine's name of the volume of a node's data.
func (c *Cluster) dataVolume(node string) string {
	return c.Prefix + "node" + strconv.Itoa(slices.Index(Nodes, node)+1) + "-data"
}

// load reads the secrets and works out the addresses.
func (c *Cluster) load() error {
	c.Token, c.password = map[string]string{}, map[string]string{}
	files, err := os.ReadDir(c.secretsDir)
	if err != nil {
		return fmt.Errorf("read secrets: %w", err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(c.secretsDir, f.Name()))
		if err != nil {
			return fmt.Errorf("read secrets: %w", err)
		}
		value := strings.TrimSpace(string(data))
		c.password[f.Name()] = value
		if role, ok := strings.CutPrefix(f.Name(), "token_"); ok {
			c.Token[role] = value
		}
	}
	c.URL = "http://127.0.0.1:" + c.published["API"]
	c.DatabaseURL = c.PoolerDSN("app", "imdb")
	c.DatabaseRO = c.PoolerDSN("app", "imdb_ro")
	c.RedisURL = "redis://:" + c.password["redis_password"] + "@127.0.0.1:" + c.published["REDIS"] + "/0"
	return nil
}

// PoolerDSN is where a role reaches a database through PgBouncer. TLS is off
// there, and is not asked for.
func (c *Cluster) PoolerDSN(role, database string) string {
	return dsn(role, c.password["role_"+role], c.published["POOLER"], database)
}

// NodeDSN is where a role reaches a node directly.
func (c *Cluster) NodeDSN(node, role, database string) string {
	port := c.published["NODE1"]
	if node == Nodes[1] {
		port = c.published["NODE2"]
	}
	return dsn(role, c.password["role_"+role], port, database)
}

func dsn(role, password, port, database string) string {
	return "postgresql://" + role + ":" + password + "@127.0.0.1:" + port + "/" + database + "?sslmode=disable"
}

// Password is the content of a secret's file, such as role_app.
func (c *Cluster) Password(secret string) string { return c.password[secret] }

// Destroy removes the cluster with all that belongs to it, also one that is
// only half up.
func (c *Cluster) Destroy(ctx context.Context) error {
	return c.run(ctx, append(slices.Clone(c.Env), "YES=1", "BACKUPS=yes"), filepath.Join(c.Root, "deploy/compose/destroy.sh"))
}

// Script runs one of the scripts of deploy/compose for this cluster.
func (c *Cluster) Script(ctx context.Context, name string, args ...string) error {
	return c.run(ctx, c.Env, filepath.Join(c.Root, "deploy/compose", name), args...)
}

func (c *Cluster) run(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, out)
	}
	return nil
}

// Container is the name of a service's container on the engine.
func (c *Cluster) Container(service string) string { return c.Prefix + service }

// Docker runs the engine's client; its output is returned without the last newline.
func (c *Cluster) Docker(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return strings.TrimRight(string(out), "\n"), nil
}

// Psql runs SQL as the superuser by a node's socket: from here where this process may
// open it, else in the node's container.
func (c *Cluster) Psql(ctx context.Context, node, database, sql string) (string, error) {
	dir := filepath.Join(c.volumes, c.dataVolume(node), "_data", "run")
	if _, err := os.Stat(dir); err == nil {
		return SocketSQL(ctx, dir, database, sql)
	}
	return c.Docker(ctx, "exec", c.Container(node), "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "root", "-d", database, "-c", sql)
}

// An Answer is what the API said.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// JSON decodes the body into a map; nil where it is none.
func (a Answer) JSON() map[string]any {
	var m map[string]any
	_ = json.Unmarshal(a.Body, &m) // a caller that needs it finds nil
	return m
}

// Call sends a request with the token of role ("" for none). body may be nil, a
// string or bytes sent as they are, or a value to encode.
func (c *Cluster) Call(ctx context.Context, role, method, path string, body any, header ...string) (Answer, error) {
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	case []byte:
		reader = bytes.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return Answer{}, fmt.Errorf("encode request: %w", err)
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, reader)
	if err != nil {
		return Answer{}, fmt.Errorf("request: %w", err)
	}
	if reader != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if role != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token[role])
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return Answer{Status: resp.StatusCode, Header: resp.Header, Body: data}, nil
}

// Logs are the last lines of every container's log, for a failed test.
func (c *Cluster) Logs(ctx context.Context) string {
	var out strings.Builder
	for _, service := range append(slices.Clone(Nodes), "pgbouncer", "pgbackrest", "controld") {
		const state = "{{.RestartCount}} restarts, {{json .State}}"
		for _, look := range [][]string{{"inspect", "-f", state}, {"logs", "--tail", "60"}} {
			text, err := c.Docker(ctx, append(look, c.Container(service))...)
			fmt.Fprintf(&out, "--- %s %s %v\n%s\n", service, look[0], errors.Unwrap(err), text)
		}
	}
	return out.String()
}

// handedOut are the ports that this process has given to a cluster: one that comes
// up listens only later.
var handedOut sync.Map

// FreePorts returns ports of 127.0.0.1 that nobody listens on now. They lie below
// those that the kernel gives to outgoing connections, which could take them before
// the cluster listens.
func FreePorts(ctx context.Context, n int) ([]string, error) {
	var ports []string
	for tries := 0; len(ports) < n; tries++ {
		if tries > 100*n {
			return nil, errors.New("find a free port: none in 20000 to 32000")
		}
		port := strconv.Itoa(20000 + mathrand.IntN(12000))
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:"+port)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		if _, given := handedOut.LoadOrStore(port, true); !given {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

// FreeSubnet returns a network that no interface of this machine is in. Docker's
// own networks have an interface each.
func FreeSubnet() (string, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("find a free subnet: %w", err)
	}
	for range 100 {
		subnet := fmt.Sprintf("10.%d.%d.0/24", 200+mathrand.IntN(50), mathrand.IntN(256))
		if !overlaps(subnet, addresses) {
			return subnet, nil
		}
	}
	return "", errors.New("no free subnet in 10.200.0.0 to 10.249.255.0")
}

func overlaps(subnet string, addresses []net.Addr) bool {
	_, want, err := net.ParseCIDR(subnet)
	if err != nil {
		return true
	}
	for _, a := range addresses {
		if has, ok := a.(*net.IPNet); ok && (want.Contains(has.IP) || has.Contains(want.IP)) {
			return true
		}
	}
	return false
}

// Poll calls ready until it answers nil or limit has passed; the last error
// tells what was missing.
func Poll(ctx context.Context, limit, every time.Duration, ready func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ready(bounded)
		if err == nil {
			return nil
		}
		select {
		case <-bounded.Done():
			return fmt.Errorf("not within %v: %w", limit, err)
		case <-time.After(every):
		}
	}
}
