package app

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"controld/internal/api/command"
	"controld/internal/backup"
	"controld/internal/cluster"
	"controld/internal/health"
	"controld/internal/manager"
	"controld/internal/metrics/sample"
	"controld/internal/operation"
	"controld/internal/redis"
)

// parts are what capabilities are made of.
type parts struct {
	out        cluster.Outside
	manager    *manager.Manager
	operations *operation.Manager
	redis      *redis.Client
	backups    backup.Parts
	backup     backup.Config
}

// capabilities are what controld has beside the cluster's own operations, those of more
// weight for /health first. A further one is a line here. Each registers its kinds of
// operation when it is made, and offers what it has of the four that add takes.
func (p parts) capabilities() (all capabilities, err error) {
	for _, made := range []func() (any, error){
		func() (any, error) { return backup.New(p.backup, p.backups) },
		func() (any, error) { return p.redis, nil },
	} {
		c, err := made()
		if err != nil {
			return all, err
		}
		if err := all.add(c); err != nil {
			return all, err
		}
	}
	return all, nil
}

type capabilities struct {
	health   []health.Contributor
	commands []command.Set
	watchers []watcher
	figures  []sample.Source
}

// A watcher looks at something until ctx ends.
type watcher interface{ Watch(ctx context.Context) }

// A commander has commands of the API.
type commander interface {
	Commands(kit command.Kit) []command.Route
}

func (all *capabilities) add(c any) error {
	contributor, contributes := c.(health.Contributor)
	if contributes {
		all.health = append(all.health, contributor)
	}
	served, serves := c.(commander)
	if serves {
		all.commands = append(all.commands, served.Commands)
	}
	looking, looks := c.(watcher)
	if looks {
		all.watchers = append(all.watchers, looking)
	}
	figures, counts := c.(sample.Source)
	if counts {
		all.figures = append(all.figures, figures)
	}
	if !contributes && !serves && !looks && !counts {
		return fmt.Errorf("capability %T offers nothing", c)
	}
	return nil
}

func (all *capabilities) watch(ctx context.Context, group *errgroup.Group) {
	for _, w := range all.watchers {
		group.Go(func() error { w.Watch(ctx); return nil })
	}
}
