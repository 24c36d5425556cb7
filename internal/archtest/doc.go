// Package archtest holds the import directions of this module as a test. It
// has no code: who may import whom stands in imports_test.go.
package archtest
