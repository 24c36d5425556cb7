package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"controld/internal/metrics/sample"
)

// families shows what capabilities have to show. Which those are it learns when it is asked.
type families struct{ sources []sample.Source }

// Describe says nothing, which is how a collector says that it knows its metrics only later.
func (families) Describe(chan<- *prometheus.Desc) {}

// Collect sends what each source has now.
func (f families) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	for _, s := range f.sources {
		for _, family := range s.Samples(now) {
			d := describe(family.Name, family.Help, family.Labels...)
			for _, x := range family.Samples {
				ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, x.Value, x.Labels...)
			}
		}
	}
}
