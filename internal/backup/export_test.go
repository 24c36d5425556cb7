package backup

// NewCatalogueFake is for the contract that it shares with Redis.
var NewCatalogueFake = newCatalogueFake
