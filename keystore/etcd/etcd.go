// Package etcd keeps a store's records in an etcd cluster, version 3.4 or later, for several
// instances at a time.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"gssproxyd/keystore"
)

const (
	// callWait is how long one call to the cluster may take: longer than an election.
	callWait = 5 * time.Second

	// noLeader is how long until another member is asked where one has no leader: an election takes
	// longer.
	noLeader = 100 * time.Millisecond

	// lockLife is for how many seconds a lock outlives its holder's last word.
	lockLife = 10

	// page is how many records are read at a time.
	page = 500

	// quota is etcd's default, which members before 3.6 do not say.
	quota = 2 << 30
)

// compact is what to do where there is no room.
const compact = "have its administrator compact the history and defragment the members (etcdctl compaction, defrag), and then, if the alarm was raised, disarm it (etcdctl alarm disarm); keystored(8) says how it stays small"

// Config says where the cluster is and who this instance is to it.
type Config struct {
	Endpoints []string    // URLs, or host:port
	TLS       *tls.Config // nil: without
	Username  string      // empty: none
	Password  string
	Prefix    string // of all keys; several stores in one cluster have different ones
}

// Backend is a client of a cluster. A record is under PREFIX/record/NAME, and its version is etcd's
// ModRevision; a lock is under PREFIX/lock/NAME, with a lease.
type Backend struct {
	client         *clientv3.Client
	token          *token // nil: etcd does not ask who this is
	records, locks string // prefixes
}

// Open connects to a cluster: it is an error if none of its members answers. The caller closes it.
func Open(ctx context.Context, c Config) (*Backend, error) {
	prefix := strings.TrimSuffix(c.Prefix, "/")
	config := clientv3.Config{
		Endpoints: c.Endpoints, TLS: c.TLS,
		DialTimeout: callWait, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: callWait,
		Logger: zap.NewNop(), // what comes of it is in the errors
	}
	b := &Backend{records: prefix + "/record/", locks: prefix + "/lock/"}
	if c.Username != "" {
		b.token = &token{username: c.Username, password: c.Password}
		config.DialOptions = []grpc.DialOption{grpc.WithPerRPCCredentials(b.token)}
	}
	client, err := clientv3.New(config)
	if err != nil {
		return nil, fmt.Errorf("etcd %s: %w", strings.Join(c.Endpoints, ","), err)
	}
	b.client = client
	if err := b.login(ctx); err != nil {
		client.Close()
		return nil, fmt.Errorf("etcd %s: %w", strings.Join(c.Endpoints, ","), err)
	}
	if _, err := b.Get(ctx, ""); err != nil {
		client.Close()
		return nil, fmt.Errorf("etcd %s: %w", strings.Join(c.Endpoints, ","), err)
	}
	return b, nil
}

// login gets the first token: without one etcd would go by the name in the certificate.
func (b *Backend) login(ctx context.Context) error {
	if b.token == nil {
		return nil
	}
	asking, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	if err := b.token.renew(asking, b.client, ""); err != nil && !errors.Is(err, rpctypes.ErrAuthNotEnabled) {
		return explained(ctx, err)
	}
	return nil
}

// Close ends the connections.
func (b *Backend) Close() error { return b.client.Close() }

func (b *Backend) record(kv *mvccpb.KeyValue) keystore.Record {
	return keystore.Record{Name: strings.TrimPrefix(string(kv.Key), b.records), Value: kv.Value, Version: uint64(kv.ModRevision)}
}

// Get implements [keystore.Backend].
func (b *Backend) Get(ctx context.Context, name string) (keystore.Record, error) {
	r, err := ask(ctx, b, func(ctx context.Context) (*clientv3.GetResponse, error) { return b.client.Get(ctx, b.records+name) })
	if err != nil {
		return keystore.Record{}, err
	}
	if len(r.Kvs) == 0 {
		return keystore.Record{Name: name}, nil
	}
	return b.record(r.Kvs[0]), nil
}

// List implements [keystore.Backend].
func (b *Backend) List(ctx context.Context, prefix string) (records []keystore.Record, at uint64, err error) {
	from, end := b.records+prefix, clientv3.GetPrefixRangeEnd(b.records+prefix)
	for {
		r, err := b.page(ctx, from, end, at)
		if err != nil {
			return nil, 0, err
		}
		if at == 0 {
			at = uint64(r.Header.Revision)
		}
		for _, kv := range r.Kvs {
			records = append(records, b.record(kv))
		}
		if !r.More {
			return records, at, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

func (b *Backend) page(ctx context.Context, from, end string, at uint64) (*clientv3.GetResponse, error) {
	return ask(ctx, b, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return b.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(int64(at)))
	})
}

// Commit implements [keystore.Backend].
func (b *Backend) Commit(ctx context.Context, held keystore.Lock, changes ...keystore.Record) (uint64, error) {
	var compares []clientv3.Cmp
	var operations []clientv3.Op
	if held != nil {
		l, ok := held.(*lock)
		if !ok {
			return 0, keystore.ErrLockLost
		}
		select {
		case <-l.lost:
			return 0, keystore.ErrLockLost
		default:
			compares = append(compares, clientv3.Compare(clientv3.CreateRevision(l.key), "=", l.revision))
		}
	}
	for _, c := range changes {
		key := b.records + c.Name
		compares = append(compares, clientv3.Compare(clientv3.ModRevision(key), "=", int64(c.Version)))
		switch {
		case c.Keep:
		case c.Value == nil:
			operations = append(operations, clientv3.OpDelete(key))
		default:
			operations = append(operations, clientv3.OpPut(key, string(c.Value)))
		}
	}
	// Who does not get it is told whether that is for the lock.
	var otherwise []clientv3.Op
	if held != nil {
		otherwise = append(otherwise, clientv3.OpGet(held.(*lock).key, clientv3.WithKeysOnly()))
	}
	r, err := ask(ctx, b, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return b.client.Txn(ctx).If(compares...).Then(operations...).Else(otherwise...).Commit()
	})
	if err != nil {
		return 0, err
	}
	if r.Succeeded {
		return uint64(r.Header.Revision), nil
	}
	if held != nil {
		kvs := r.Responses[0].GetResponseRange().Kvs
		if len(kvs) == 0 || kvs[0].CreateRevision != held.(*lock).revision {
			return 0, keystore.ErrLockLost
		}
	}
	return 0, keystore.ErrConflict
}

// ask makes a call until a member answers that has a leader, and that knows the token: one that is cut
// off from the others, and not from here, would let each call wait that comes to it. What such a member
// refuses it has not done.
func ask[R any](ctx context.Context, b *Backend, call func(context.Context) (R, error)) (R, error) {
	asking, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), callWait)
	defer cancel()
	for {
		used := b.token.get()
		r, err := call(asking)
		again := errors.Is(err, rpctypes.ErrNoLeader)
		if b.token != nil && (errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrAuthOldRevision) || used == "" && (errors.Is(err, rpctypes.ErrUserEmpty) || errors.Is(err, rpctypes.ErrPermissionDenied))) {
			again = true
			if failed := b.token.renew(asking, b.client, used); failed != nil && !errors.Is(failed, rpctypes.ErrNoLeader) {
				return r, explained(ctx, failed)
			}
		}
		if again {
			select {
			case <-time.After(noLeader):
				continue // the client asks the members by turns
			case <-asking.Done():
			}
		}
		return r, explained(ctx, err)
	}
}

// explained adds to the error of a call, made for a caller, what to do about it.
func explained(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("etcd takes no writes, since its database has reached its quota (%w): %s", err, compact)
	case (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, rpctypes.ErrNoLeader)) && ctx.Err() == nil:
		return fmt.Errorf("etcd has not answered within %v (%w): look whether a majority of its members runs, and can be reached from here", callWait, err)
	}
	return err
}

// Room returns in words what is wrong, or soon will be, with the room that the members' databases have:
// nothing can be written once one has reached its quota. A member that does not answer has none.
func (b *Backend) Room(ctx context.Context) (wrong []string) {
	for _, endpoint := range b.client.Endpoints() {
		asking, cancel := context.WithTimeout(ctx, callWait)
		s, err := b.client.Status(asking, endpoint)
		cancel()
		if err != nil {
			continue
		}
		if w := room(s); w != "" {
			wrong = append(wrong, fmt.Sprintf("etcd %s: %s: %s", endpoint, w, compact))
		}
	}
	return wrong
}

// room returns what is wrong with the room of a member.
func room(s *clientv3.StatusResponse) string {
	const mebibyte = 1 << 20
	for _, alarm := range s.Errors {
		if strings.Contains(alarm, "NOSPACE") {
			return fmt.Sprintf("the alarm NOSPACE is raised, and nothing can be written: the database has %d MiB, %d of them in use", s.DbSize/mebibyte, s.DbSizeInUse/mebibyte)
		}
	}
	limit, which := s.DbSizeQuota, "its quota"
	if limit <= 0 {
		limit, which = quota, fmt.Sprintf("etcd's default, which is assumed as etcd %s does not say its quota (quota-backend-bytes): if it was given another one, that is what counts", s.Version)
	}
	if s.DbSize < limit/4*3 {
		return ""
	}
	return fmt.Sprintf("the database has %d MiB, %d of them in use, of %d MiB, %s; when they are full nothing can be written", s.DbSize/mebibyte, s.DbSizeInUse/mebibyte, limit/mebibyte, which)
}

// Watch implements [keystore.Backend].
func (b *Backend) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[keystore.Committed, error] {
	return func(yield func(keystore.Committed, error) bool) {
		watching, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		defer cancel()
		for r := range b.client.Watch(watching, b.records+prefix, clientv3.WithPrefix(), clientv3.WithRev(int64(after)+1)) {
			if ctx.Err() != nil {
				return
			}
			if err := r.Err(); err != nil {
				if r.CompactRevision != 0 || errors.Is(err, rpctypes.ErrCompacted) {
					err = keystore.ErrCompacted
				}
				yield(keystore.Committed{}, err)
				return
			}
			for len(r.Events) > 0 {
				// All events of a revision are in one response.
				c := keystore.Committed{At: uint64(r.Events[0].Kv.ModRevision)}
				for len(r.Events) > 0 && uint64(r.Events[0].Kv.ModRevision) == c.At {
					c.Records = append(c.Records, b.record(r.Events[0].Kv)) // of a deletion without Value
					r.Events = r.Events[1:]
				}
				if !yield(c, nil) {
					return
				}
			}
		}
		if ctx.Err() == nil {
			yield(keystore.Committed{}, errors.New("the connection to etcd was closed"))
		}
	}
}

// lock is a key with a lease that is kept alive.
type lock struct {
	b        *Backend
	lease    clientv3.LeaseID
	key      string
	revision int64 // at which the key was created
	cancel   context.CancelFunc
	lost     chan struct{} // closed when the lease is not kept alive any more
}

// Lock implements [keystore.Backend].
func (b *Backend) Lock(ctx context.Context, name string) (keystore.Lock, error) {
	lease, err := ask(ctx, b, func(ctx context.Context) (*clientv3.LeaseGrantResponse, error) { return b.client.Grant(ctx, lockLife) })
	if err != nil {
		return nil, err
	}
	alive, stop := context.WithCancel(b.client.Ctx())
	l := &lock{b, lease.ID, b.locks + name, 0, stop, make(chan struct{})}
	kept, err := b.client.KeepAlive(alive, lease.ID)
	if err != nil {
		stop()
		close(l.lost)
		return nil, errors.Join(err, l.Unlock(ctx))
	}
	go func() { // until the lease ends, or Unlock
		defer close(l.lost)
		for range kept {
		}
	}()
	if err := l.take(ctx); err != nil {
		return nil, errors.Join(err, l.Unlock(ctx))
	}
	return l, nil
}

// take makes the key as soon as there is none.
func (l *lock) take(ctx context.Context) error {
	for {
		r, err := ask(ctx, l.b, func(ctx context.Context) (*clientv3.TxnResponse, error) {
			return l.b.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(l.key), "=", 0)).
				Then(clientv3.OpPut(l.key, "", clientv3.WithLease(l.lease))).Commit()
		})
		if err != nil {
			return err
		}
		if r.Succeeded {
			l.revision = r.Header.Revision
			return nil
		}
		if err := l.await(ctx, r.Header.Revision); err != nil {
			return err
		}
	}
}

// await returns when the key was taken away after a revision.
func (l *lock) await(ctx context.Context, after int64) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	gone := l.b.client.Watch(ctx, l.key, clientv3.WithRev(after+1), clientv3.WithFilterPut())
	for {
		select {
		case r, ok := <-gone:
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := r.Err(); err != nil {
				return err
			}
			if !ok {
				return errors.New("the connection to etcd was closed")
			}
			if len(r.Events) > 0 {
				return nil
			}
		case <-l.lost:
			return keystore.ErrLockLost
		}
	}
}

// Lost implements [keystore.Lock].
func (l *lock) Lost() <-chan struct{} { return l.lost }

// Unlock implements [keystore.Lock]. If the cluster does not hear of it, the lock is held for some
// seconds more.
func (l *lock) Unlock(ctx context.Context) error {
	l.cancel()
	<-l.lost
	_, err := ask(context.WithoutCancel(ctx), l.b, func(ctx context.Context) (*clientv3.LeaseRevokeResponse, error) {
		return l.b.client.Revoke(ctx, l.lease)
	})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return err
}

var _ keystore.Backend = (*Backend)(nil)
