package etcd

import (
	"context"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/credentials"
)

// token is what etcd knows this instance by, once it has been told the password: until a member starts
// anew, it was not used for some minutes, or something about users is changed. It goes with each call but
// the one that gets another: members before 3.5 refuse even that with a former token, and the client of
// etcd's, left to itself, has no way out of it.
type token struct {
	username, password string

	renewing sync.Mutex
	mu       sync.Mutex
	value    string
}

func (t *token) get() string {
	if t == nil {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.value
}

// renew gets another token than the one that was of no use, unless somebody else has.
func (t *token) renew(ctx context.Context, client *clientv3.Client, useless string) error {
	t.renewing.Lock()
	defer t.renewing.Unlock()
	if t.get() != useless {
		return nil
	}
	r, err := client.Authenticate(ctx, t.username, t.password)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.value = r.Token
	return nil
}

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (t *token) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	value := t.get()
	if about, _ := credentials.RequestInfoFromContext(ctx); value == "" || about.Method == "/etcdserverpb.Auth/Authenticate" {
		return nil, nil
	}
	return map[string]string{rpctypes.TokenFieldNameGRPC: value}, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials]: the configuration has seen to it
// that nothing goes over a network in the clear.
func (t *token) RequireTransportSecurity() bool { return false }

var _ credentials.PerRPCCredentials = (*token)(nil)
