// Command testreport reads the events of `go test -json` from standard input
// and prints what `go test` would have printed, with every skipped test named,
// the ten slowest tests and a closing line that counts. It fails when a test failed and, with CI=true,
// when one was skipped: there a missing service must not look like success.
// With -v it prints what the tests that passed have logged, too.
//
// It runs no test itself; the caller has to mind the exit status of go test.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action     string
	Package    string
	ImportPath string // of a build event
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

// test names one test of one package.
type test struct{ pkg, name string }

// A timed is a test with the seconds that it took.
type timed struct {
	test
	seconds float64
}

// report collects what the events have told so far.
type report struct {
	out    io.Writer
	all    bool            // print what passed, too
	output map[test]string // of tests that have not ended
	skips  []string        // package, name and message of each skipped test
	took   []timed         // tests that ended, subtests left out

	passed, failed, packages int
	broken                   bool // a package failed, perhaps without any test of its own
}

func main() {
	verbose := flag.Bool("v", false, "print what the tests that passed have logged")
	flag.Parse()
	r := report{out: os.Stdout, all: *verbose, output: map[test]string{}}
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
	if !r.close(os.Getenv("CI") == "true") {
		os.Exit(1)
	}
}

// read takes in all events. A line that is no event, such as a message of the
// go command, is printed as it is.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) == nil && e.Action != "" {
				r.add(e)
			} else {
				fmt.Fprint(r.out, line)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
	}
}

func (r *report) add(e event) {
	switch {
	case e.Action == "build-output":
		fmt.Fprint(r.out, e.Output)
	case e.Test != "":
		r.addTest(e)
	default:
		r.addPackage(e)
	}
}

func (r *report) addTest(e event) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "output":
		if !strings.HasPrefix(e.Output, "=== ") { // RUN, PAUSE, CONT: only -v prints them
			r.output[t] += e.Output
		}
		return
	case "pass":
		r.passed++
		if r.all {
			fmt.Fprint(r.out, r.output[t])
		}
	case "fail":
		r.failed++
		fmt.Fprint(r.out, r.output[t])
	case "skip":
		r.skips = append(r.skips, fmt.Sprintf("%s %s: %s", e.Package, e.Test, message(r.output[t])))
	default:
		return // run, pause, cont, start
	}
	if !strings.Contains(e.Test, "/") {
		r.took = append(r.took, timed{t, e.Elapsed})
	}
	delete(r.output, t)
}

func (r *report) addPackage(e event) {
	switch e.Action {
	case "output":
		if e.Output != "PASS\n" {
			fmt.Fprint(r.out, e.Output)
		}
	case "pass":
		r.packages++
	case "fail":
		r.packages++
		r.broken = true
		r.flush(e.Package)
	}
}

// flush prints the output of tests that a panic or a timeout cut off: it is
// where the reason stands.
func (r *report) flush(pkg string) {
	for t, output := range r.output {
		if t.pkg == pkg {
			fmt.Fprint(r.out, output)
			delete(r.output, t)
		}
	}
}

// message is a skipped test's output in one line, without the frame of go test.
func message(output string) string {
	var kept []string
	for line := range strings.Lines(output) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "--- SKIP: ") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, " ")
}

// How many of the slowest tests are named, and from when on one is slow.
const (
	namedSlow   = 10
	slowSeconds = 1
)

// printSlowest names the tests to look at when a run takes long. One that waits
// for others beside it counts that too.
func (r *report) printSlowest() {
	slices.SortFunc(r.took, func(a, b timed) int { return cmp.Compare(b.seconds, a.seconds) })
	for _, t := range r.took[:min(namedSlow, len(r.took))] {
		if t.seconds >= slowSeconds {
			fmt.Fprintf(r.out, "%7.1f s  %s %s\n", t.seconds, t.pkg, t.name)
		}
	}
}

// close prints the end of the report and tells whether all is well.
func (r *report) close(skipsFail bool) bool {
	for _, skip := range r.skips {
		fmt.Fprintln(r.out, "SKIP", skip)
	}
	r.printSlowest()
	well := r.failed == 0 && !r.broken && r.packages > 0
	if skipsFail && len(r.skips) > 0 {
		fmt.Fprintln(r.out, "A skipped test is a failure in CI.")
		well = false
	}
	verdict := "ok"
	if !well {
		verdict = "FAIL"
	}
	fmt.Fprintf(r.out, "%s: %d passed, %d failed, %d skipped, in %d packages\n",
		verdict, r.passed, r.failed, len(r.skips), r.packages)
	return well
}
