package keystore

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"
)

// Instances tell each other which hosts they hear of: a host that none has heard of for a while is
// dead, and nobody waits for it.
//
// An instance writes every [beat] that it lives. Which hosts live with it is in other records, some
// hosts in each, which are written only when one of these hosts comes or goes: who is among the living
// there was heard of within [silent] of the instance's last beat. So what it costs is what changes, and
// not how many hosts there are.

const (
	// beat is how often an instance says that it lives.
	beat = 20 * time.Second

	// silent is how long who is not heard of counts as alive.
	silent = 90 * time.Second

	// outOfTouch is how long after an instance has last told the others of itself it may not speak for the
	// store any more: two of three times that it did not come to that.
	outOfTouch = 50 * time.Second

	// forgotten is after how long it is not known any more when a host was seen.
	forgotten = 30 * 24 * time.Hour

	// maxAhead is by how much clocks may differ. What is older by more was said before this instance ran.
	maxAhead = 10 * time.Minute

	// idLen is how much of a host's pseudonym tells it from others: 60 bits.
	idLen = 12

	// shardLen is how much of it says in which of 1024 records the host is.
	shardLen = 2

	// saidAtOnce is how many of these records are written at a time; etcd takes 128.
	saidAtOnce = 100
)

// said is what this instance has said of the hosts of a shard.
type said struct {
	text    string // in JSON
	version uint64 // of the record
}

// peer is what another instance says.
type peer struct {
	instanceJSON
	version uint64
	ahead   time.Duration // to be added to its times, see put
	hosts   map[string]peerHosts
}

// peerHosts is what it says of the hosts of a shard.
type peerHosts struct {
	version uint64
	last    map[string]int64 // by id; 0: it lives
}

// idOf returns the id of a host by the name of its record.
func idOf(record string) string { return record[len(hostPrefix):][:idLen] }

// Seen notes that an enrolled host is heard of now. Other instances are told within half a minute.
func (s *Store) Seen(host string) {
	s.use(func(r *ring) error { // who has no keyring says nothing to others
		s.hostsMu.Lock()
		defer s.hostsMu.Unlock()
		s.hosts[idOf(r.hostName(host))] = s.o.Now()
		return nil
	})
}

// seen returns when some instance has heard of a host last, as far as was told. The caller holds
// hostsMu.
func (s *Store) seen(id string) time.Time {
	at := s.hosts[id]
	for _, p := range s.peers {
		last, ok := p.hosts[id[:shardLen]].last[id]
		told := time.Unix(last, 0)
		if last == 0 {
			told = p.Seen
		}
		if ok && !p.Seen.IsZero() && told.Add(p.ahead).After(at) {
			at = told.Add(p.ahead)
		}
	}
	return at
}

// beat tells the others that this instance lives, and before that which hosts do with it: who reads that
// it lives reads it of these.
func (s *Store) beat(ctx context.Context, stopped bool) error {
	s.beating.Lock()
	defer s.beating.Unlock()
	if err := s.sayHosts(ctx, s.o.Now()); err != nil {
		return err
	}
	for {
		i := instanceJSON{Name: s.o.Name, Seen: s.o.Now(), Stopped: stopped, Signers: formatSigners(s.o.Signers)} // what takes long does not count
		if err := s.use(func(r *ring) error {
			i.Keyring = r.mark
			return nil
		}); err != nil {
			return err
		}
		record, err := s.b.Get(ctx, s.self)
		if err != nil {
			return err
		}
		if _, err := s.commit(ctx, nil, sealed{s.self, record.Version, i}); !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

// sayHosts writes what is to be said of hosts at a time, if it is not what was said.
func (s *Store) sayHosts(ctx context.Context, now time.Time) error {
	for {
		changes, err := s.unsaid(now)
		if err != nil || len(changes) == 0 {
			return err
		}
		for some := range slices.Chunk(changes, saidAtOnce) {
			at, err := s.commit(ctx, nil, some...)
			if errors.Is(err, ErrConflict) { // they were sealed anew
				err = s.recall(ctx)
				if err != nil {
					return err
				}
				break
			}
			if err != nil {
				return err
			}
			for _, c := range some {
				s.said[c.name[strings.LastIndexByte(c.name, '/')+1:]] = said{string(c.what.(json.RawMessage)), at}
			}
		}
	}
}

// unsaid returns the records of hosts that are to be written: what is there is not what is to be said.
func (s *Store) unsaid(now time.Time) (changes []sealed, err error) {
	shards := map[string]*hostsJSON{}
	for shard := range s.said {
		shards[shard] = &hostsJSON{}
	}
	s.hostsMu.Lock()
	maps.DeleteFunc(s.hosts, func(_ string, at time.Time) bool { return now.Sub(at) > forgotten })
	for id, at := range s.hosts {
		shard := shards[id[:shardLen]]
		if shard == nil {
			shard = &hostsJSON{}
			shards[id[:shardLen]] = shard
		}
		if now.Sub(at) <= silent {
			shard.Live = append(shard.Live, id)
			continue
		}
		if shard.Gone == nil {
			shard.Gone = map[string]int64{}
		}
		shard.Gone[id] = at.Unix()
	}
	there := maps.Clone(s.there)
	s.hostsMu.Unlock()
	for shard, hosts := range shards {
		slices.Sort(hosts.Live)
		text, err := json.Marshal(hosts)
		if err != nil {
			return nil, err
		}
		// Somebody else may have put another record there.
		if was := s.said[shard]; was.text != string(text) || there[shard] > was.version {
			changes = append(changes, sealed{s.self + "/" + shard, was.version, json.RawMessage(text)})
		}
	}
	return changes, nil
}

// recall reads what this instance has said of hosts. What it does not know of them, since it was said in
// a former run, it knows then: who lived did so when that one lived last.
func (s *Store) recall(ctx context.Context) error {
	records, _, err := s.b.List(ctx, s.self)
	if err != nil {
		return err
	}
	now := s.o.Now()
	clear(s.said)
	var before instanceJSON
	for _, record := range records { // the first one is the instance's own
		shard, of := strings.CutPrefix(record.Name, s.self+"/")
		var hosts hostsJSON
		v := any(&hosts)
		if !of {
			v = &before
		}
		if err := s.unseal(ctx, record, v); err != nil {
			s.complain(ctx, "what this instance has said of itself cannot be read", err)
		}
		if !of {
			continue
		}
		text, err := json.Marshal(hosts)
		if err != nil {
			return err
		}
		s.said[shard] = said{string(text), record.Version}
		s.hostsMu.Lock()
		for _, id := range hosts.Live {
			if _, known := s.hosts[id]; !known && !before.Seen.IsZero() {
				s.hosts[id] = earlier(before.Seen, now)
			}
		}
		for id, at := range hosts.Gone {
			if _, known := s.hosts[id]; !known {
				s.hosts[id] = earlier(time.Unix(at, 0), now)
			}
		}
		s.hostsMu.Unlock()
	}
	return nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// hear puts in memory what an instance says of itself, or of hosts.
func (s *Store) hear(ctx context.Context, record Record) {
	if shard, own := strings.CutPrefix(record.Name, s.self+"/"); own {
		s.hostsMu.Lock()
		defer s.hostsMu.Unlock()
		s.there[shard] = max(s.there[shard], record.Version)
		return
	}
	instance, shard, ofHosts := strings.Cut(strings.TrimPrefix(record.Name, instancePrefix), "/")
	var i instanceJSON
	var hosts hostsJSON
	if record.Value != nil {
		v := any(&i)
		if ofHosts {
			v = &hosts
		}
		if err := s.unseal(ctx, record, v); err != nil {
			s.complain(ctx, "what an instance has said of itself cannot be read", err)
			return
		}
	}
	if record.Name == s.self { // this one's comes back, and so does all that came before it
		s.touched(i.Seen)
		return
	}
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	p := s.peers[instance]
	if p == nil {
		p = &peer{hosts: map[string]peerHosts{}}
		s.peers[instance] = p
	}
	if ofHosts {
		if record.Version > p.hosts[shard].version {
			last := make(map[string]int64, len(hosts.Live)+len(hosts.Gone))
			maps.Copy(last, hosts.Gone)
			for _, id := range hosts.Live {
				last[id] = 0
			}
			p.hosts[shard] = peerHosts{record.Version, last}
		}
		return
	}
	if record.Version <= p.version {
		return
	}
	// Its times are told by this instance's clock, or as somewhat later: from when it was seen that it had
	// said so, and not from when it says so, since clocks of instances differ.
	if !i.Seen.Equal(p.Seen) {
		if p.ahead = s.o.Now().Sub(i.Seen); p.ahead.Abs() > maxAhead {
			p.ahead = 0
		}
	}
	p.instanceJSON, p.version = i, record.Version
}

// touched notes that the others were told of this instance at a time, and it of all that they had
// changed by then.
func (s *Store) touched(at time.Time) {
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	if at.Before(s.told) {
		return
	}
	if at.Sub(s.told) > outOfTouch {
		s.touch = at
	}
	s.told = at
}

// InTouch returns since when this instance has been in touch with the others without a break; the zero
// time if it is not, as without its backend, or when it was revoked: then it does not know what they
// have changed, nor they which hosts it hears of.
func (s *Store) InTouch() time.Time {
	if s.use(func(*ring) error { return nil }) != nil {
		return time.Time{}
	}
	s.hostsMu.Lock()
	defer s.hostsMu.Unlock()
	if s.o.Now().Sub(s.told) > outOfTouch {
		return time.Time{}
	}
	return s.touch
}

// instances returns what the instances say of themselves, by the names of their records; what is not
// theirs is left out.
func (s *Store) instances(ctx context.Context) (list map[string]instanceJSON, at uint64, err error) {
	records, at, err := s.b.List(ctx, instancePrefix)
	if err != nil {
		return nil, 0, err
	}
	list = map[string]instanceJSON{}
	for _, record := range records {
		s.hear(ctx, record)
		var i instanceJSON
		if !strings.Contains(strings.TrimPrefix(record.Name, instancePrefix), "/") && s.unseal(ctx, record, &i) == nil {
			list[record.Name] = i
		}
	}
	return list, at, nil
}
