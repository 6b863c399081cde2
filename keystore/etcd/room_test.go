package etcd

import (
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A member that is nearly full is known by its own quota, or by etcd's default where it does not say.
func TestRoom(t *testing.T) {
	for _, test := range []struct {
		size, quota int64
		want        string
	}{
		{1 << 20, 0, ""},
		{2<<30/4*3 - 1, 0, ""},
		{2 << 30 / 4 * 3, 0, "the database has 1536 MiB, 5 of them in use, of 2048 MiB, etcd's default, which is assumed as etcd 3.5.9 does not say its quota (quota-backend-bytes): if it was given another one, that is what counts; "},
		{6<<30 - 1, 8 << 30, ""},
		{6 << 30, 8 << 30, "the database has 6144 MiB, 5 of them in use, of 8192 MiB, its quota; "},
	} {
		s := (*clientv3.StatusResponse)(&etcdserverpb.StatusResponse{DbSize: test.size, DbSizeInUse: 5 << 20, DbSizeQuota: test.quota, Version: "3.5.9"})
		if got := room(s); !strings.HasPrefix(got, test.want) || (test.want == "") != (got == "") {
			t.Errorf("%d of %d: %q", test.size, test.quota, got)
		}
	}
}
