// Package sample is what a capability needs to show figures in /metrics from its own package.
package sample

import "time"

// A Family is the values of one metric, which may rise and fall (a gauge).
type Family struct {
	Name, Help string
	Labels     []string // the names, in the order of each sample's
	Samples    []Sample
}

// A Sample is one value, and the values of its labels.
type Sample struct {
	Value  float64
	Labels []string
}

// A Source has figures to show. It never blocks.
type Source interface {
	Samples(now time.Time) []Family
}
