module gssproxyd

go 1.26.0

require (
	filippo.io/age v1.3.2 // sealed keytabs, and what a store seals to its instances and hosts, in a format that other tools make and open
	github.com/container-storage-interface/spec v1.13.0 // gssproxyd-csi: what the kubelet says
	github.com/coreos/go-systemd/v22 v22.7.0 // sd_notify, socket activation and whether standard error is the journal's, as the service manager defines them
	github.com/davecgh/go-xdr v0.0.0-20161123171359-e6a2ba005892 // tests: an XDR codec that is not ours, to hold ours against
	github.com/fsnotify/fsnotify v1.10.1 // keytabs are followed without a stat for each request
	github.com/google/go-cmp v0.7.0 // tests: differences one can read
	github.com/hanwen/go-fuse/v2 v2.12.1 // files as another way in: the kernel's FUSE protocol
	github.com/jcmturner/gofork v1.7.6 // tests: an ASN.1 encoder that is not ours, with the strings of Kerberos
	github.com/jcmturner/gokrb5/v8 v8.4.4 // the numbers in its iana packages, and no other code of it; tests: keytabs, encryption and an initiator that are not ours
	github.com/kubernetes-csi/csi-test/v5 v5.6.0 // tests: what every CSI driver has to do
	github.com/prometheus/client_golang v1.25.0 // counters and histograms as Prometheus has them, of the daemon and of Go's runtime
	github.com/prometheus/common v0.72.0 // their text format
	github.com/rogpeppe/go-internal v1.16.0 // tests: testscript, the command line's specification
	github.com/spf13/cobra v1.10.2 // options in the long and short forms of the C daemon, and subcommands
	github.com/spf13/pflag v1.0.10 // cobra's options, for their names
	go.etcd.io/bbolt v1.5.0 // keystored, and no other program: the embedded backend of a store on one machine
	go.etcd.io/etcd/api/v3 v3.7.3 // what that client's answers are made of
	go.etcd.io/etcd/client/v3 v3.7.3 // keystored, and no other program: the distributed backend of a store
	go.uber.org/goleak v1.3.0 // tests: every goroutine ends
	go.uber.org/zap v1.27.1 // keystored: what etcd's client logs with, to have it log nothing on its own
	go.yaml.in/yaml/v3 v3.0.5 // tests: the manifests for Kubernetes
	golang.org/x/crypto v0.58.0 // XChaCha20-Poly1305 for the handles that clients keep; SSH, for the adapter to it
	golang.org/x/sys v0.49.0 // pidfds, peer credentials, file locks, prctl
	google.golang.org/grpc v1.85.0 // gssproxyd-csi, and no other program: CSI is spoken over it
	google.golang.org/protobuf v1.36.12 // gssproxyd-csi: what gRPC carries
	kernel.org/pub/linux/libs/security/libcap/cap v1.2.78 // run_as_user: capabilities of every thread, not of one
	pgregory.net/rapid v1.3.0 // tests: random values that shrink
)

require (
	filippo.io/hpke v0.4.0 // indirect
	github.com/BurntSushi/toml v1.4.1-0.20240526193622-a339e1f7089c // indirect
	github.com/Masterminds/semver/v3 v3.4.0 // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/coreos/go-semver v0.3.1 // indirect
	github.com/go-logr/logr v1.4.4 // indirect
	github.com/go-task/slim-sprig/v3 v3.0.0 // indirect
	github.com/golang/protobuf v1.5.4 // indirect
	github.com/google/pprof v0.0.0-20260402051712-545e8a4df936 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.29.0 // indirect
	github.com/hashicorp/go-uuid v1.0.3 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/jcmturner/aescts/v2 v2.0.0 // indirect
	github.com/jcmturner/dnsutils/v2 v2.0.0 // indirect
	github.com/jcmturner/rpc/v2 v2.0.3 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/onsi/ginkgo/v2 v2.32.1 // indirect
	github.com/onsi/gomega v1.42.1 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	go.etcd.io/etcd/client/pkg/v3 v3.7.3 // indirect
	go.uber.org/mock v0.6.0 // indirect
	go.uber.org/multierr v1.11.0 // indirect
	golang.org/x/exp/typeparams v0.0.0-20231108232855-2478ac86f678 // indirect
	golang.org/x/mod v0.41.0 // indirect
	golang.org/x/net v0.61.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/telemetry v0.0.0-20260924152758-ed294f943157 // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/tools v0.51.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	gopkg.in/yaml.v2 v2.4.0 // indirect
	honnef.co/go/tools v0.8.2 // indirect
	k8s.io/klog/v2 v2.140.0 // indirect
	kernel.org/pub/linux/libs/security/libcap/psx v1.2.78 // indirect
)

// The linters, run by make lint; never linked.
tool (
	golang.org/x/tools/cmd/deadcode
	honnef.co/go/tools/cmd/staticcheck
)
