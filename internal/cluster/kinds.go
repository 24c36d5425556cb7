package cluster

// The kinds of operation that look after the nodes.
const (
	KindFailover  = "failover"
	KindFailback  = "failback"
	KindRejoin    = "rejoin"
	KindStart     = "start"
	KindBootstrap = "bootstrap" // a start by controld itself, when it starts
	KindAlign     = "align"     // points the pooler where the nodes are
	KindProvision = "provision" // brings the roles and rights that this version needs
	KindProtect   = "protect"   // sets or lifts what commits wait for, in replication mode sync
)

// The modes of KindProtect.
const (
	ProtectSet  = "set"
	ProtectLift = "lift"
)
