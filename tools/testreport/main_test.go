package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const (
		passed = `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n"
		failed = `{"Action":"output","Package":"p","Test":"TestB","Output":"wrong\n"}` + "\n" +
			`{"Action":"fail","Package":"p","Test":"TestB"}` + "\n"
		skipped = `{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:1: no engine\n"}` + "\n" +
			`{"Action":"output","Package":"p","Test":"TestC","Output":"--- SKIP: TestC (0.00s)\n"}` + "\n" +
			`{"Action":"skip","Package":"p","Test":"TestC"}` + "\n"
		broken  = `{"Action":"build-output","ImportPath":"p","Output":"undefined: x\n"}` + "\n"
		cutOff  = `{"Action":"output","Package":"p","Test":"TestD","Output":"panic: boom\n"}` + "\n"
		slow    = `{"Action":"pass","Package":"p","Test":"TestSlow","Elapsed":12.5}` + "\n"
		ok      = `{"Action":"pass","Package":"p"}` + "\n"
		notOK   = `{"Action":"fail","Package":"p"}` + "\n"
		noTests = `{"Action":"skip","Package":"q"}` + "\n"
	)
	for _, tt := range []struct {
		name, events string
		ci, well     bool
		prints       string
	}{
		{"all pass", passed + ok, true, true, "ok: 1 passed, 0 failed, 0 skipped, in 1 packages"},
		{"the slowest are named", slow + passed + ok, true, true, "   12.5 s  p TestSlow\nok: 2 passed"},
		{"a package without tests is no skip", passed + ok + noTests, true, true, "0 skipped"},
		{"a skip is named", skipped + ok, false, true, "SKIP p TestC: c_test.go:1: no engine\n"},
		{"a skip in CI", skipped + ok, true, false, "A skipped test is a failure in CI."},
		{"a failure prints its output", passed + failed + notOK, false, false, "wrong\n"},
		{"a panic prints what it cut off", cutOff + notOK, false, false, "panic: boom\n"},
		{"a package that does not build", broken + notOK, false, false, "undefined: x\n"},
		{"nothing ran", "go: no such thing\n", false, false, "go: no such thing\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			r := report{out: &out, output: map[test]string{}}
			if err := r.read(strings.NewReader(tt.events)); err != nil {
				t.Fatal(err)
			}
			if well := r.close(tt.ci); well != tt.well {
				t.Errorf("well = %t", well)
			}
			if !strings.Contains(out.String(), tt.prints) {
				t.Errorf("printed %q, without %q", out.String(), tt.prints)
			}
		})
	}
}
