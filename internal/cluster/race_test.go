//go:build race

package cluster_test

// raceDetector: the tests run under it.
const raceDetector = true
