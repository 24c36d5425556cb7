//go:build !race

package cluster_test

// stride: every cut is made.
const stride = 1
