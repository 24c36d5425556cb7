//go:build race

package manager_test

// raceDetector: the tests run under it.
const raceDetector = true
