package node_test

import (
	"testing"

	"controld/internal/cluster/clustertest"
	"controld/internal/node"
)

func TestTheInitsContract(t *testing.T) {
	p := newPair(t)
	var env [2]clustertest.InitNode
	for i, n := range p.nodes {
		n.run()
		env[i] = clustertest.InitNode{
			Give: func(o node.Order) {
				if err := node.WriteOrder(n.order, o); err != nil {
					t.Fatal(err)
				}
			},
			Answers: func() bool { _, err := n.sql("select 1"); return err == nil },
			Status:  n.status, Locked: n.locked, Kill: n.kill, Start: n.start,
			Upstream: *n.upstream(), DataDir: "/pg/" + n.name + "/data",
		}
	}
	clustertest.RunInitContract(t, clustertest.InitEnv{First: env[0], Second: env[1]})
}
