//go:build race

package cluster_test

// stride: under the race detector, which takes ten times as long, one cut of
// a few is made; a run without it makes them all.
const stride = 6
