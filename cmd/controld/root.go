package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"controld/internal/client"
)

// env is what a command sees of the process it runs in.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	environ        []string
	terminal       bool // progress may be drawn on stderr
	now            func() time.Time
}

func processEnv() env {
	return env{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, environ: os.Environ(),
		terminal: term.IsTerminal(int(os.Stderr.Fd())) && term.IsTerminal(int(os.Stdout.Fd())),
		now:      time.Now,
	}
}

// cli is one call of the command line: its process and its global flags.
type cli struct {
	env
	output    string
	url       string
	tokenFile string
	answers   *bufio.Reader // what a person types
	began     bool          // the arguments were fine and a command has begun
}

// run is the whole command line; it returns the exit code.
func run(ctx context.Context, args []string, e env) int {
	c := &cli{env: e}
	root := c.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if !c.began {
		err = &usageError{err}
	}
	var silent *reported
	if !errors.As(err, &silent) {
		fmt.Fprintf(c.stderr, "controld: %s\n", err)
	}
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintln(c.stderr, "Run controld --help, or controld COMMAND --help, for the usage.")
	}
	return exitCode(err)
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "controld",
		Short: "Look after a PostgreSQL primary and its standby",
		Long: `controld looks after a PostgreSQL primary and its standby in containers.

"controld serve" is the daemon; every other command asks a daemon through its
API. The daemon's address is CONTROLD_URL (http://127.0.0.1:8088 without it) and
the token CONTROLD_TOKEN, or the content of the file --token-file names; a token
is never given on the command line, where every process can read it. On the
daemon's own machine none is needed where its setting api.anonymous allows that.

` + exitCodeHelp,
		Example: `  eval "$(make -s env)"        # CONTROLD_URL and CONTROLD_TOKEN
  controld status
  controld failover --dry-run
  controld failover --reason "kernel update"
  controld failback`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if c.output != "table" && c.output != "json" {
				return fmt.Errorf("--output %q is not known; allowed: table, json", c.output)
			}
			c.began = true
			return nil
		},
	}
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	flags := root.PersistentFlags()
	flags.StringVarP(&c.output, "output", "o", "table", "how results are written: table or json")
	flags.StringVar(&c.url, "url", "", "the daemon's address (default: CONTROLD_URL, or http://127.0.0.1:8088)")
	flags.StringVar(&c.tokenFile, "token-file", "", "a file with the token (default: the variable CONTROLD_TOKEN)")
	completeWords(root, "output", "table", "json")
	root.AddCommand(
		c.serveCommand(), c.statusCommand(), c.failoverCommand(), c.failbackCommand(), c.backupCommand(),
		c.startCommand(), c.rejoinCommand(),
		c.operationsCommand(), c.checkCommand(), c.versionCommand(),
	)
	return root
}

// client is made when a command needs it: --help and version need none.
func (c *cli) client() (*client.Client, error) {
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	api, err := client.New(c.address(), token)
	if err != nil {
		return nil, &usageError{err}
	}
	return api, nil
}

func (c *cli) address() string {
	for _, u := range []string{c.url, c.getenv("CONTROLD_URL")} {
		if u != "" {
			return strings.TrimRight(u, "/")
		}
	}
	return "http://127.0.0.1:8088"
}

func (c *cli) token() (string, error) {
	if c.tokenFile == "" {
		return c.getenv("CONTROLD_TOKEN"), nil
	}
	data, err := os.ReadFile(c.tokenFile)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" {
		return "", fmt.Errorf("token file %s is empty", c.tokenFile)
	}
	return token, nil
}

// programVersion is the release, or the commit that was built.
func programVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "dev-" + s.Value[:12]
		}
	}
	return "dev"
}
