"""Pure: what the trainer's ranks are told of the network between their nodes.

Sources: NCCL's list of environment variables, where `=` asks for exactly that name; gloo's in torch.distributed; AWS's
guide to EFA, whose plugin for NCCL must be on the library path.
"""

from skyrl_stack.site import NetworkSection


def network_environment(network: NetworkSection) -> dict[str, str]:
    """Variables of all ranks. Nothing is set that the profile does not say: NCCL and gloo then choose themselves."""
    if network.interface is None:
        return _fabric(network)
    return _fabric(network) | {
        "NCCL_SOCKET_IFNAME": f"={network.interface}",
        "GLOO_SOCKET_IFNAME": network.interface,
    }


def _fabric(network: NetworkSection) -> dict[str, str]:
    match network.fabric:
        case "tcp":
            return {"NCCL_NET": "Socket"}
        case "infiniband":
            # Named, so that a node without it is an error and not a slow node.
            return {"NCCL_NET": "IB"} | ({"NCCL_IB_HCA": f"={','.join(network.hcas)}"} if network.hcas else {})
        case "efa":
            return {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1"}
        case None:
            return {}
