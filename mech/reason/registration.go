package reason

// A registration of a pod that is refused.
const RegistrationDenied ID = "registration-denied"

// Registration documents why a pod is not registered.
var Registration = []Doc{
	{RegistrationDenied, "a pod of Kubernetes was not registered, so it gets no socket",
		"the error says what was asked for and by whom; a volume of the CSI driver has to be an ephemeral one in the pod's own specification, and the CSIDriver object has to have podInfoOnMount"},
}
