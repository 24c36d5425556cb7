package backup_test

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"controld/internal/backup"
	"controld/internal/docker/dockertest"
	"controld/internal/redis"
)

// A store is a catalogue, and what others do to it.
type store interface {
	backup.Catalogue
	Put(key string, fields map[string]string) // nil: something that is no record
	Flush()
	Away(yes bool)
}

// realStore is Redis.
type realStore struct {
	*redis.Client
	t      *testing.T
	server *dockertest.Redis
}

func (s realStore) Put(key string, fields map[string]string) {
	if fields == nil {
		s.server.Command(s.t, "SET", key, "no record")
		return
	}
	for name, value := range fields {
		s.server.Command(s.t, "HSET", key, name, value)
	}
}

func (s realStore) Flush() { s.server.Command(s.t, "FLUSHALL") }

func (s realStore) Away(yes bool) {
	if yes {
		s.server.Pause(s.t)
	} else {
		s.server.Unpause(s.t)
	}
}

// The fake that other tests use behaves as Redis does.
func TestCatalogueContract(t *testing.T) {
	t.Run("fake", func(t *testing.T) { catalogueContract(t, backup.NewCatalogueFake()) })
	t.Run("redis", func(t *testing.T) {
		server := dockertest.StartRedis(t)
		client := redis.New(redis.Config{Address: server.Address(), Password: dockertest.Password, Interval: time.Second})
		t.Cleanup(func() { client.Close() })
		catalogueContract(t, realStore{client, t, server})
	})
}

func catalogueContract(t *testing.T, s store) {
	ctx := t.Context()
	at := time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC)
	const one, two, foreign, other = "backup:2026-03-01_02-00-00", "backup:2026-03-01_03-00-00", "backup:2024-01-01_01-00-00",
		"backup:2024-01-01_02-00-00"
	must := func(changes ...backup.Change) {
		t.Helper()
		if err := s.Apply(ctx, changes); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(entries map[string]map[string]string, index map[string]time.Time) {
		t.Helper()
		held, err := s.Read(ctx)
		if err != nil || !reflect.DeepEqual(held.Entries, entries) || !reflect.DeepEqual(held.Index, index) {
			t.Fatalf("it holds %+v, %v; want %v, index %v", held, err, entries, index)
		}
		if held.Version == "" || !held.Durable {
			t.Errorf("version %q, durable %v", held.Version, held.Durable)
		}
		if n, err := s.Count(ctx); err != nil || n != len(index) {
			t.Errorf("%d keys, %v; want %d", n, err, len(index))
		}
	}
	type fields = map[string]string

	expect(map[string]map[string]string{}, map[string]time.Time{})
	must(backup.Change{Key: one, At: at, Set: fields{"a": "1", "b": "2"}},
		backup.Change{Key: two, At: at.Add(time.Hour), Set: fields{"a": "3"}})
	expect(map[string]map[string]string{one: {"a": "1", "b": "2"}, two: {"a": "3"}},
		map[string]time.Time{one: at, two: at.Add(time.Hour)})

	// What others write is seen where it has the shape of a key, and left alone otherwise.
	s.Put(one, fields{"note": "theirs"})
	s.Put(foreign, fields{"fecha": "2024-01-01"})
	s.Put(other, nil)
	s.Put("backup:latest", fields{"a": "1"})
	must(backup.Change{Key: one, At: at, Set: fields{"a": "9"}, Unset: []string{"b"}})
	want := map[string]map[string]string{
		one: {"a": "9", "note": "theirs"}, two: {"a": "3"}, foreign: {"fecha": "2024-01-01"}, other: nil,
	}
	expect(want, map[string]time.Time{one: at, two: at.Add(time.Hour)})
	if err := s.Apply(ctx, []backup.Change{{Key: other, At: at, Set: fields{"a": "1"}}}); err == nil || errors.Is(err, backup.ErrAway) {
		t.Errorf("what is no record was written as one: %v", err)
	}
	must(backup.Change{Key: other, Unlist: true})

	must(backup.Change{Key: two, Unlist: true})
	expect(want, map[string]time.Time{one: at})
	must(backup.Change{Key: one, Remove: true}, backup.Change{Key: two, Remove: true}, backup.Change{Key: two, Remove: true})
	expect(map[string]map[string]string{foreign: {"fecha": "2024-01-01"}, other: nil}, map[string]time.Time{})

	// More than is asked for at once.
	var many []backup.Change
	for i := range 450 {
		began := at.Add(time.Duration(i) * time.Second)
		many = append(many, backup.Change{Key: backup.KeyPrefix + began.Format("2006-01-02_15-04-05"), At: began, Set: fields{"a": "1"}})
	}
	must(many...)
	if held, err := s.Read(ctx); err != nil || len(held.Entries) != 452 || len(held.Index) != 450 {
		t.Errorf("%d records, %d in the index, %v", len(held.Entries), len(held.Index), err)
	}

	s.Away(true)
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, reads := s.Read(short)
	_, counts := s.Count(short)
	for _, err := range []error{reads, counts, s.Apply(short, many[:1])} {
		if !errors.Is(err, backup.ErrAway) {
			t.Errorf("away: %v", err)
		}
	}
	s.Away(false)
	s.Flush()
	expect(map[string]map[string]string{}, map[string]time.Time{})
}
