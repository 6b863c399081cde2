package reason

// Refusals of a connection that no service is for. Of several services, the one that came nearest
// to matching gives the reason: see conf.Config.Decide.
const (
	NoServiceForUID   ID = "no-service-for-uid"
	GroupMismatch     ID = "group-mismatch"
	SELinuxMismatch   ID = "selinux-mismatch"
	AppArmorMismatch  ID = "apparmor-mismatch"
	UnitMismatch      ID = "unit-mismatch"
	PodMismatch       ID = "pod-mismatch"
	ContainerMismatch ID = "container-mismatch"
	ProgramUntrusted  ID = "program-untrusted"
	ProgramMismatch   ID = "program-mismatch"
	ProgramUnknown    ID = "program-unknown"
	ProgramElsewhere  ID = "program-in-other-namespace"
	WrongSocket       ID = "wrong-socket"
)

// Match documents why no service matches.
var Match = []Doc{
	{NoServiceForUID, "no service on this socket is for the peer's uid",
		"set euid of the service to the user the program runs as, or allow_any_uid"},
	{GroupMismatch, "the peer is in none of the groups that the service is for",
		"compare group with /proc/PID/status of the peer: groups that a user was given since the program was started are not its own yet"},
	{SELinuxMismatch, "the peer's SELinux context is not that of the service",
		"compare selinux_context with ps -Z; the option is deprecated, euid and socket do as well"},
	{AppArmorMismatch, "AppArmor does not hold the peer to the profile that the service is for",
		"compare apparmor_label with ps -Z of the peer; a profile that only complains does not count"},
	{UnitMismatch, "the peer is not in a unit of systemd that the service is for",
		"compare unit with systemctl status PID of the peer. Without control groups of version 2 (/proc/PID/cgroup has a line that begins with 0::), or in a container, the daemon cannot know"},
	{PodMismatch, "the peer is not in a pod of Kubernetes that the service is for",
		"compare pod with the pod's namespace, service account and name; the pod needs a volume of the CSI driver, and must connect to the socket in it. A peer that uses the socket of another pod than its control group (/proc/PID/cgroup) is of is refused everything"},
	{ContainerMismatch, "the peer is not in a container that the service is for",
		"compare container with /proc/PID/cgroup of the peer, where the outermost container counts; what a user runs without root is in the unit user@UID.service, and in no container"},
	{ProgramUntrusted, "the file of the peer's program is not root's, or others may write to it",
		"look at the file that readlink /proc/PID/exe names: it must belong to root, and not be writable by group or others; or remove program_trusted"},
	{ProgramMismatch, "the peer runs another program than the service is for",
		"set program to what readlink /proc/PID/exe says; scripts run as their interpreter"},
	{ProgramUnknown, "the service is for one program, and the peer's is not known",
		"the peer may have ended, or be a kernel thread; remove program if that is what should match"},
	{ProgramElsewhere, "the peer has a file system of its own, and its program is not the file with that path here",
		"give programs in containers a service with a socket that only they can reach, instead of program"},
	{WrongSocket, "the service the peer belongs to is reached through another socket",
		"set GSSPROXY_SOCKET of the peer to the service's socket, or remove socket from the service"},
}
